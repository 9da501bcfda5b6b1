/**
 * The one Lua script behind every change of ownership: a single EVALSHA compares owner, epoch and migration, and writes.
 *
 * KEYS[1] hf:{W}:owner (hash)   KEYS[2] hf:{W}:held: (a prefix)   KEYS[3] hf:{W}:registry (hash: a session's id, what it is)   KEYS[4] hf:{W}:staged:<migration>
 * KEYS[6] hf:{W}:link (JSON); who changes it says so on the channel hf:links, where clients may publish on it
 * KEYS[5] hf:{W}:names (sorted set, by when each expires: milliseconds of Redis's own clock)
 * ARGV    step, node, epoch, migration, target, ttlMs, where the payload is ("here", "staged"), payload, namesMax, epochMin
 * answer  status, owner, epoch, state, previous, migration id, its target, its epoch (strings, "" for none)
 *
 * Held bytes too large for one short call are written before, under KEYS[4], and renamed by the commit.
 * The key of held bytes is made from KEYS[2] and the epoch in the record, which the caller would have to fetch first;
 * all keys share the hash tag {W}, so in a Cluster they live together. `memory.ts` says the same in TypeScript and one
 * test runs both: change them together.
 */
import { CANCELLED_MAX } from "./store.ts";

export const OWNERSHIP_KEYS = 6;
export const LINKS_CHANNEL = "hf:links";

export const OWNERSHIP_SCRIPT = `
local step, node, epochArg, id, target, ttlMs, where, payload, namesMax, epochMin = unpack(ARGV)
local r = redis.call('HMGET', KEYS[1], 'owner', 'epoch', 'state', 'previous', 'mid', 'mtarget', 'mepoch',
  'committed', 'returned', 'cancelled', 'top')
local exists = redis.call('EXISTS', KEYS[1]) == 1

local function text(v) return v or '' end
local function number(v)
  if type(v) == 'string' and #v <= 15 and string.match(v, '^[1-9]%d*$') then return tonumber(v) end
  return nil
end
local function decimal(n) return string.format('%.0f', n) end

local owner, epoch, state, previous = text(r[1]), number(r[2]), text(r[3]), text(r[4])
local mid, mtarget, mepoch = text(r[5]), text(r[6]), number(r[7]) or 0
local committed, returned, cancelled, top = text(r[8]), text(r[9]), text(r[10]), number(r[11])

if exists and (owner == '' or not epoch or not top or top < epoch or (state ~= 'released' and state ~= 'committed' and state ~= 'stopped')
    or (mid ~= '' and (mtarget == '' or mepoch == 0)) or (state == 'committed' and mid == '')) then
  return {'corrupt'}
end

local function answer(status)
  if not exists then return {status} end
  return {status, owner, decimal(epoch), state, previous, mid, mtarget, decimal(mepoch)}
end
local function save()
  exists = true
  redis.call('HSET', KEYS[1], 'owner', owner, 'epoch', decimal(epoch), 'state', state, 'previous', previous,
    'mid', mid, 'mtarget', mtarget, 'mepoch', decimal(mepoch), 'committed', committed, 'returned', returned,
    'cancelled', cancelled, 'top', decimal(top))
  return answer('ok')
end
-- A step that had been carried out is written once more: only then does WAIT, on another connection, speak of it.
local function again()
  redis.call('HSET', KEYS[1], 'owner', owner)
  return answer('ok')
end
local function clear() mid, mtarget, mepoch = '', '', 0 end
local function wasCancelled() return string.find(',' .. cancelled .. ',', ',' .. id .. ',', 1, true) ~= nil end
local function rememberCancelled()
  if wasCancelled() then return end
  local kept = {}
  for one in string.gmatch(cancelled, '[^,]+') do kept[#kept + 1] = one end
  kept[#kept + 1] = id
  while #kept > ${CANCELLED_MAX} do table.remove(kept, 1) end
  cancelled = table.concat(kept, ',')
end
local function nowMs()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end
-- An account that may not publish must not lose what it has written: gateways look now and then, too.
local function tellLink() redis.pcall('PUBLISH', '${LINKS_CHANNEL}', string.match(KEYS[1], '{(.*)}')) end
local mine = exists and owner == node and decimal(epoch) == epochArg

if step == 'read' then
  return answer(exists and 'ok' or 'absent')
end
if step == 'claim' then
  if exists and state ~= 'stopped' then return again() end
  top = math.max(number(epochArg) or 1, (top or 0) + 1)
  owner, epoch, state = node, top, 'released'
  return save()
end
if step == 'raise' then
  local wanted = number(epochArg)
  if exists and owner == node and state == 'released' and epoch >= wanted then return again() end
  if exists and (epoch > wanted or (epoch == wanted and (owner ~= node or state == 'stopped'))) then return answer('fenced') end
  if exists then
    redis.call('DEL', KEYS[2] .. decimal(epoch))
    if owner ~= node then previous = owner end
    if epoch ~= wanted then committed = '' end
  end
  top = math.max(wanted, top or 0)
  owner, epoch, state = node, wanted, 'released'
  clear()
  return save()
end
if not exists then return answer('absent') end

if step == 'reserve' then
  if not mine or state ~= 'released' or wasCancelled() then return answer('fenced') end
  if mid == id and mtarget == target then return again() end
  if mid ~= '' then return answer('busy') end
  top = math.max(top + 1, number(epochMin) or 1)
  mid, mtarget, mepoch = id, target, top
  return save()
end
if step == 'cancel' then
  if committed == id then return again() end
  if mid == id then clear() end
  rememberCancelled()
  return save()
end
if step == 'commit' then
  local refused = committed ~= id and (not mine or mid ~= id)
  if committed == id or refused then
    redis.call('DEL', KEYS[4])
    return refused and answer('fenced') or again()
  end
  local heldKey = KEYS[2] .. decimal(mepoch)
  if where == 'here' then redis.call('SET', heldKey, payload, 'PX', ttlMs)
  elseif redis.call('EXISTS', KEYS[4]) == 0 then return redis.error_reply('GONE the staged bytes have expired')
  else redis.call('RENAME', KEYS[4], heldKey) end
  previous, owner, epoch, state, committed = node, mtarget, mepoch, 'committed', id
  return save()
end
if step == 'markReleased' then
  if not mine or state == 'stopped' then return answer('fenced') end
  redis.call('DEL', KEYS[2] .. decimal(epoch))
  if state == 'released' then return again() end
  state = 'released'
  clear()
  return save()
end
if step == 'takeBack' then
  if returned == id and owner == node and state == 'released' then return again() end
  if state == 'committed' and mid == id and previous == node then
    redis.call('DEL', KEYS[2] .. decimal(epoch))
    previous, committed = owner, ''
  elseif not (owner == node and state == 'released' and committed ~= id and (mid == id or (mid == '' and wasCancelled()))) then
    return answer('fenced')
  end
  top = top + 1
  owner, epoch, state, returned = node, top, 'released', id
  clear()
  rememberCancelled()
  return save()
end
if step == 'stop' then
  if not mine then return answer('fenced') end
  if mid ~= '' then return answer('busy') end
  redis.call('DEL', KEYS[3], KEYS[5], KEYS[2] .. decimal(epoch))
  if redis.call('DEL', KEYS[6]) == 1 then tellLink() end
  state = 'stopped'
  return save()
end
if step == 'sessions' then
  if not mine or state == 'stopped' then return answer('fenced') end
  local told = cjson.decode(payload)
  if told.anew then redis.call('DEL', KEYS[3]) end
  for i = 1, #told.sessions, 2 do redis.call('HSET', KEYS[3], told.sessions[i], told.sessions[i + 1]) end
  for _, gone in ipairs(told.gone) do redis.call('HDEL', KEYS[3], gone) end
  redis.call('PEXPIRE', KEYS[3], ttlMs)
  return answer('ok')
end
if step == 'link' then
  if not mine or state == 'stopped' then return answer('fenced') end
  local before = redis.call('GET', KEYS[6])
  redis.call('SET', KEYS[6], payload)
  if before ~= payload then tellLink() end
  return answer('ok')
end
if step == 'names' then
  if not mine or state == 'stopped' then return answer('fenced') end
  local now = nowMs()
  local expiresAt = decimal(now + tonumber(ttlMs))
  for _, name in ipairs(cjson.decode(payload)) do redis.call('ZADD', KEYS[5], expiresAt, name) end
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', decimal(now))
  redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -1 - tonumber(namesMax))
  if redis.call('PTTL', KEYS[5]) < tonumber(ttlMs) then redis.call('PEXPIRE', KEYS[5], ttlMs) end
  return answer('ok')
end
if step == 'lookup' then
  local expiresAt = redis.call('ZSCORE', KEYS[5], payload)
  return answer((expiresAt and tonumber(expiresAt) > nowMs()) and 'ok' or 'absent')
end
return redis.error_reply('unknown step ' .. step)
`;
