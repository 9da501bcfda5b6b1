/**
 * Whether CRIU 4.2 can give a tree of processes its sessions back. It forks the tree anew, and a process gets a session only
 * from its leader or by birth; so it must have been born below its leader, or of a parent that had the session then
 * (criu/pstree.c, prepare_pstree_ids). Pure.
 */

export interface SessionMember {
  pid: number;
  parent: number;
  session: number;
}

/**
 * @param tree parents first; its first one is the root @param takesOrphans the root can be made to take those whose leader is not above them
 * (`criu/subreaper.ts`). Gives the first process that cannot be restored; null: all can
 */
export function sessionFault(tree: SessionMember[], takesOrphans: boolean): SessionMember | null {
  const [root] = tree;
  if (root === undefined) return null;
  const byPid = new Map(tree.map((member) => [member.pid, member]));
  const parentOf = (member: SessionMember): SessionMember | undefined =>
    member === root ? undefined : byPid.get(member.parent);
  const born = new Map<SessionMember, number>();
  for (const member of tree) {
    if (member === root || member.session === member.pid) continue;
    if (parentOf(member)?.session === member.session) continue;
    // children of the root are born of a helper that has the session, whoever led it
    if (member.parent === root.pid) {
      if (takesOrphans) continue;
      return member;
    }
    let above = parentOf(member);
    while (above !== undefined && above.pid !== member.session) {
      if ((born.get(above) ?? member.session) !== member.session) return member;
      born.set(above, member.session);
      above = parentOf(above);
    }
    if (above === undefined) return member;
  }
  return null;
}
