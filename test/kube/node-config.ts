/** What containerd, kubelet and kube-proxy of one node are told. Pure. */

export interface NodeConfig {
  /** the node's own folder */
  folder: string;
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

/** File name → text. */
export function nodeFiles(config: NodeConfig): Record<string, string> {
  return {
    "containerd.toml": containerd(config),
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

function kubelet({ address, credentials, openFilesMax }: NodeConfig): unknown {
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
    containerRuntimeEndpoint: "unix:///run/containerd/containerd.sock",
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
