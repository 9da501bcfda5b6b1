/** `holdfast completion SHELL`: what a shell completes, made of the commands as they are. */
import type { Command } from "commander";

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

interface Completed {
  /** "status", "keys init" */
  name: string;
  description: string;
  options: string[];
}

/** A script, for `source <(holdfast completion bash)`. */
export function completionOf(program: Command, shell: Shell): string {
  const commands = program.commands.flatMap((command) => [
    completed(command, ""),
    ...command.commands.map((below) => completed(below, `${command.name()} `)),
  ]);
  if (shell === "fish") return fish(commands);
  // zsh takes bash's own
  return `${shell === "zsh" ? "autoload -U +X bashcompinit && bashcompinit\n" : ""}${bash(commands)}`;
}

function completed(command: Command, prefix: string): Completed {
  return {
    name: `${prefix}${command.name()}`,
    description: command.description(),
    options: [...command.options.flatMap(({ short, long }) => [short, long]), "--help"].filter(
      (one) => one !== undefined && one !== null,
    ) as string[],
  };
}

function below(commands: Completed[], prefix: string): string {
  return commands
    .filter(({ name }) => name.startsWith(prefix) && !name.slice(prefix.length).includes(" "))
    .map(({ name }) => name.slice(prefix.length))
    .join(" ");
}

function bash(commands: Completed[]): string {
  const cases = commands.map(({ name, options }) => {
    const more = below(commands, `${name} `);
    return `    '${name}') words='${[more, ...options].filter((word) => word !== "").join(" ")}' ;;`;
  });
  return `_holdfast() {
  local words='${below(commands, "")} --help --version' path="\${COMP_WORDS[1]}"
  [ "$COMP_CWORD" -gt 2 ] && case "\${COMP_WORDS[1]}" in ${commands
    .filter(({ name }) => name.includes(" "))
    .map(({ name }) => name.split(" ")[0])
    .filter((name, index, all) => all.indexOf(name) === index)
    .join(" | ")}) path="\${COMP_WORDS[1]} \${COMP_WORDS[2]}" ;; esac
  [ "$COMP_CWORD" -gt 1 ] && case "$path" in
${cases.join("\n")}
    *) words= ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _holdfast holdfast kubectl-holdfast
`;
}

function fish(commands: Completed[]): string {
  const quoted = (text: string): string => `'${text.replaceAll(/['\\]/g, "\\$&")}'`;
  return commands
    .flatMap(({ name, description, options }) => {
      const [first = "", second] = name.split(" ");
      const at = second === undefined ? "__fish_use_subcommand" : `__fish_seen_subcommand_from ${first}`;
      return [
        `complete -c holdfast -f -n '${at}' -a ${second ?? first} -d ${quoted(description)}`,
        ...options
          .filter((option) => option.startsWith("--"))
          .map(
            (option) =>
              `complete -c holdfast -n '__fish_seen_subcommand_from ${second ?? first}' -l ${option.slice(2)}`,
          ),
      ];
    })
    .map((line) => `${line}\n`)
    .join("");
}
