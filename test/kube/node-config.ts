/** What containerd or CRI-O, kubelet and kube-proxy of one node are told. Pure. */
import type { Crio, OciRuntime } from "./kube-tools.ts";

export type ContainerRuntime = "containerd" | "cri-o";

export interface NodeConfig {
  /** the node's own folder */
  folder: string;
  /** null: the node runs containerd */
  crio: Crio | null;
  /** of pods that name none, where CRI-O starts them */
  ociRuntime: OciRuntime;
  address: string;
  podCidr: string;
  /** all nodes' pods */
  clusterCidr: string;
  credentials: string;
  /** folder of CNI plugins */
  cni: string;
  pauseImage: string;
  openFilesMax: number;
}

/** Of the node's container runtime. */
export function criSocket(crio: Crio | null): string {
  return crio === null ? "/run/containerd/containerd.sock" : "/run/crio/crio.sock";
}

/** File name → text. */
export function nodeFiles(config: NodeConfig): Record<string, string> {
  return {
    ...(config.crio === null ? { "containerd.toml": containerd(config) } : crioFiles(config, config.crio)),
    "cni/10-pods.conflist": JSON.stringify(network(config)),
    "kubelet.yaml": JSON.stringify(kubelet(config)),
    "kube-proxy.yaml": JSON.stringify(kubeProxy(config)),
  };
}

/** Paths are those of the machine where they can be: what a container's mounts say then names the cluster it belongs to. */
function containerd({ folder, cni, pauseImage }: NodeConfig): string {
  return `version = 3
root = "${folder}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp", "io.containerd.snapshotter.v1.blockfile", "io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "${pauseImage}"
[plugins.'io.containerd.cri.v1.runtime']
  # without CAP_SYS_RESOURCE no oom_score_adj can be lowered
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["${cni}"]
    conf_dir = "${folder}/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "/usr/sbin/runc"
      SystemdCgroup = false
`;
}

function network({ podCidr }: NodeConfig): unknown {
  return {
    cniVersion: "1.0.0",
    name: "pods",
    plugins: [
      {
        type: "ptp",
        ipMasq: false,
        ipam: {
          type: "host-local",
          dataDir: "/run/cni-addresses",
          ranges: [[{ subnet: podCidr }]],
          routes: [{ dst: "0.0.0.0/0" }],
        },
      },
      { type: "portmap", capabilities: { portMappings: true }, backend: "nftables" },
    ],
  };
}

/** Its runtime is {@link withoutRefused}; images are in a store that all nodes read, made by `image-store.ts`. */
function crioFiles({ folder, cni, pauseImage, ociRuntime }: NodeConfig, crio: Crio): Record<string, string> {
  const programs = crio.runtimes.map(({ name, program, root }) => {
    const shown = `${folder}/${name}`;
    const table = `[crio.runtime.runtimes.${name}]\nruntime_path = "${shown}"\nruntime_root = "${root}"\nmonitor_path = "${crio.conmon}"\nmonitor_cgroup = "pod"`;
    return { name, table, text: withoutRefused(program) };
  });
  return {
    ...Object.fromEntries(programs.map(({ name, text }) => [name, text])),
    "crio.conf": `[crio]
root = "${folder}/storage"
runroot = "/run/containers/storage"
storage_driver = "overlay"
storage_option = ["overlay.imagestore=${folder}/../images/store"]
log_dir = "/var/log/crio/pods"
version_file = "/run/crio/version"
clean_shutdown_file = "${folder}/crio.clean"
# after an end by SIGKILL it would check its store, and wipe one that it cannot repair, with the layers of containers that run
internal_repair = false
[crio.api]
listen = "${criSocket(crio)}"
[crio.runtime]
default_runtime = "${ociRuntime}"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
pinns_path = "${crio.bin}/pinns"
namespaces_dir = "/run"
container_exits_dir = "/run/crio/exits"
container_attach_socket_dir = "/run/crio"
hooks_dir = []
apparmor_profile = "unconfined"
# as good as none: crun 1.8 writes what stands for none (-1) to pids.max
pids_limit = 4194304
${programs.map(({ table }) => table).join("\n")}
[crio.image]
pause_image = "${pauseImage}"
pause_command = "/pause -P"
signature_policy = "${folder}/../policy.json"
[crio.network]
network_dir = "${folder}/cni"
plugin_dirs = ["${cni}"]
[crio.nri]
enable_nri = false
`,
  };
}

/**
 * What this machine may refuse is left out of the configuration of a container, or of a process that is started in one; containerd has settings
 * for it (`restrict_oom_score_adj`, `disable_hugetlb_controller`), CRI-O has none. An oom_score_adj that is lowered and, of a privileged container,
 * CAP_SYS_RESOURCE, where this process has not that capability itself; limits of huge pages where no hierarchy has their controller. And
 * crun 1.8, Debian 12's, takes no configuration of a newer version than 1.0, although it can do what is in it.
 */
function withoutRefused(program: string): string {
  return `#!/bin/sh
edit() {
  grep -q '^CapPrm:.*[13579bdf]......$' /proc/self/status ||
    sed -i -e 's/"oomScoreAdj": *-[0-9]*/"oomScoreAdj":0/' -e 's/"CAP_SYS_RESOURCE",//g' "$1"
  grep -q " /sys/fs/cgroup/hugetlb " /proc/self/mountinfo || sed -zi 's/"hugepageLimits": *\\[[^]]*\\]/"hugepageLimits":[]/' "$1"
  ! ${program} --version | grep -q '^crun version 1\\.[0-8]\\.' || sed -i 's/"ociVersion": *"[^"]*"/"ociVersion":"1.0.2"/' "$1"
}
previous=
for argument; do
  case $previous in
    --bundle) edit "$argument/config.json" ;;
    --process) edit "$argument" ;;
  esac
  previous=$argument
done
exec ${program} "$@"
`;
}

function kubelet({ crio, address, credentials, openFilesMax }: NodeConfig): unknown {
  return {
    apiVersion: "kubelet.config.k8s.io/v1beta1",
    kind: "KubeletConfiguration",
    address,
    authentication: {
      anonymous: { enabled: false },
      webhook: { enabled: true },
      x509: { clientCAFile: `${credentials}/ca.crt` },
    },
    authorization: { mode: "Webhook" },
    cgroupDriver: "cgroupfs",
    containerRuntimeEndpoint: `unix://${criSocket(crio)}`,
    failCgroupV1: false,
    failSwapOn: false,
    resolvConf: "",
    maxOpenFiles: openFilesMax,
    makeIPTablesUtilChains: false,
    // an image that is removed cannot be pulled again
    imageGCHighThresholdPercent: 100,
    imageGCLowThresholdPercent: 99,
    evictionHard: {
      "memory.available": "100Mi",
      "nodefs.available": "1%",
      "imagefs.available": "1%",
      "nodefs.inodesFree": "1%",
    },
    nodeStatusUpdateFrequency: "5s",
    shutdownGracePeriod: "0s",
  };
}

function kubeProxy({ folder, clusterCidr }: NodeConfig): unknown {
  return {
    apiVersion: "kubeproxy.config.k8s.io/v1alpha1",
    kind: "KubeProxyConfiguration",
    mode: "nftables",
    clusterCIDR: clusterCidr,
    clientConnection: { kubeconfig: `${folder}/kube-proxy.kubeconfig` },
    // limits of the whole machine are not a node's to set
    conntrack: { maxPerCore: 0, min: 0 },
  };
}
