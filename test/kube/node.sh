#!/bin/sh
# PID 2 of a node of a test cluster, in namespaces of the node's own (network, mount, PID, UTS, IPC, cgroup): shows the node folders of its
# own where kubelet and the container runtime want theirs, and starts them. Nothing of it is seen outside.
#
#   node.sh FOLDER    which has containerd.toml or crio.conf, kubelet.yaml, kube-proxy.yaml, kubelet.kubeconfig, kube-proxy.kubeconfig
#
# From the environment: NODE (its name), ADDRESS, RUNTIME (containerd or cri-o), OCI_RUNTIME (runc or crun), IMAGES (archives, a line each, for containerd)
set -eu
folder=$1
cd "$folder"

mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mount --make-shared /run
mkdir -p /run/containerd /run/crio var work kubelet logs
# /var as it is, and folders in it that the machine has not
mount -t overlay overlay -o "lowerdir=/var,upperdir=$folder/var,workdir=$folder/work" /var
mkdir -p /var/lib/kubelet /var/log/pods /var/log/containers
mount --bind "$folder/kubelet" /var/lib/kubelet
mount --make-shared /var/lib/kubelet

# Control groups (v1): each hierarchy again, so that its root is the node's own group. crun wants no unified one with controllers beside them.
if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then
  groups=$(cat /proc/self/cgroup)
  umount -R /sys/fs/cgroup 2>/dev/null || true
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  echo "$groups" | while IFS=: read -r number controllers path; do
    case $number:$controllers in
      0:*) [ "$OCI_RUNTIME" = crun ] || { mkdir /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified; } ;;
      *:name=*) mkdir "/sys/fs/cgroup/${controllers#name=}" && mount -t cgroup -o "none,$controllers" cgroup "/sys/fs/cgroup/${controllers#name=}" ;;
      *) mkdir "/sys/fs/cgroup/$controllers" && mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/$controllers" ;;
    esac
  done
fi

# What kubelet wants to set for the whole machine it finds set: a file in the place of each of these, here only.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=/proc/sys/${setting%=*}
  [ "$(cat "$file")" = "${setting#*=}" ] && continue
  shown=$folder/$(echo "${setting%=*}" | tr / .)
  echo "${setting#*=}" >"$shown"
  mount --bind "$shown" "$file"
done

# As a service manager: what has ended is started again, when `daemons.down` is gone; before `daemons.kept` is there what ends, ends for good.
keep() {
  name=$1
  shift
  while :; do
    "$@" >>"$name.log" 2>&1 &
    echo $! >"$name.pid"
    wait $! || true
    [ -e daemons.kept ] || exit 1
    sleep 0.2
    while [ -e daemons.down ]; do sleep 0.1; done
  done
}

case $RUNTIME in
  containerd)
    keep runtime containerd --config containerd.toml &
    socket=/run/containerd/containerd.sock
    answers() { ctr -a "$socket" version >/dev/null 2>&1; }
    ;;
  cri-o)
    export CONTAINERS_REGISTRIES_CONF=/dev/null
    keep runtime crio --config crio.conf --config-dir "" &
    answers() { curl -sf --unix-socket /run/crio/crio.sock http://localhost/info >/dev/null; }
    ;;
esac
until answers; do
  kill -0 $! || exit 1
  sleep 0.05
done
echo "$RUNTIME is ready"
if [ -e kubelet.kubeconfig ]; then
  kube-proxy --config kube-proxy.yaml --hostname-override "$NODE" --v=1 >kube-proxy.log 2>&1 &
  keep kubelet kubelet --config kubelet.yaml --kubeconfig kubelet.kubeconfig --hostname-override "$NODE" --node-ip "$ADDRESS" --root-dir /var/lib/kubelet --v=2 &
fi
echo "$IMAGES" | while read -r image; do
  [ "$RUNTIME" = containerd ] || break # CRI-O reads the store of all nodes
  ctr -a "$socket" -n k8s.io images import --local "$image" >>import.log 2>&1 || { cat import.log >&2; exit 1; }
done
echo "images are there"
wait
