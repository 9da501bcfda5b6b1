/** Containers as the OCI runtime specification describes them (config.json, https://github.com/opencontainers/runtime-spec). */
export interface OciMount {
  destination: string;
  type?: string;
  source?: string;
  options?: string[];
}

/** The part of an OCI configuration that Holdfast reads or changes. */
export interface OciSpec {
  ociVersion: string;
  process: { args: string[]; cwd: string; env?: string[]; terminal?: boolean; [key: string]: unknown };
  root: { path: string; readonly?: boolean };
  mounts?: OciMount[];
  hostname?: string;
  linux?: {
    namespaces?: { type: string; path?: string }[];
    cgroupsPath?: string;
    seccomp?: unknown;
    maskedPaths?: string[];
    [key: string]: unknown;
  };
  /** not in the file: which program made the container of a pod, as its mounts have that one's options; undefined: it is ours */
  madeBy?: "runc" | "crun";
  /** not in the file: where a pod's container has parts of its emptyDirs (`subPath`), as the configuration does not say what they are of */
  parts?: { folders: string[]; files: string[] };
  [key: string]: unknown;
}
