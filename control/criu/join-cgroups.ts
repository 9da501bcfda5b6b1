/** How a program of the agent's becomes one of a container's control groups: before it does anything, so that all it does is theirs. */
const JOIN_THEN_EXEC = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 97; shift; done; shift; exec "$@"';
/** Raising takes no privilege (proc_pid_oom_score_adj(5)). */
const AS_VICTIM = "echo 1000 > /proc/self/oom_score_adj; ";

/**
 * Arguments of /bin/sh, which joins the groups of these `cgroup.procs` files and becomes `command`.
 * @param isVictim where memory is short, the kernel shall end it before others
 */
export function joinThenExec(
  cgroupProcs: readonly string[],
  command: readonly string[],
  { isVictim = false }: { isVictim?: boolean } = {},
): string[] {
  return ["-c", (isVictim ? AS_VICTIM : "") + JOIN_THEN_EXEC, "sh", ...cgroupProcs, "--", ...command];
}
