/** What is asked of a node that is to take a workload, before anything is made there. */
import { readFile, stat, statfs } from "node:fs/promises";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { listSockets } from "#proxy/kernel/diag.ts";
import type { CheckCall } from "../../api/check.ts";
import type { Check } from "../../api/finding.ts";
import { isToBeApart } from "../../config/config.ts";
import { accountingHere } from "../../criu/address-space.ts";
import { runCommand } from "../../runtime/command.ts";
import type { SandboxPlan } from "../../runtime/runtime.ts";
import { agreementOf, disagreementsUnder } from "./agreement.ts";
import type { CheckedWorkload } from "./checked-workload.ts";
import { hasSysResource } from "./node.ts";
import { profileDifferences, profileOf } from "./node-profile.ts";
import { bindsOf, compareFiles } from "./same-files.ts";
import { checkLabels } from "./security-labels.ts";
import { availableBytes, mega } from "./space.ts";

export interface ArrivalPlace {
  workload: CheckedWorkload;
  call: CheckCall;
}

export const arrivalChecks: Check<ArrivalPlace>[] = [
  {
    category: "ownership",
    async run({ workload, call }, add) {
      const busy = workload.busyWith;
      if (busy !== null)
        add(
          "target.busy",
          "error",
          `${workload.name} is being ${busy} there`,
          "wait until that is over: holdfast status",
        );
      if (workload.journal.role === "owner")
        add(
          "target.owner-too",
          "error",
          "that node believes that it owns the workload itself",
          "look at holdfast status of both nodes; stop the one that is not to be",
        );
      else if (call.epoch < workload.journal.epoch)
        add(
          "target.epoch-passed",
          "error",
          `that node has known it at epoch ${workload.journal.epoch}, which is later than the source's ${call.epoch}`,
          "look at holdfast status of both nodes",
        );
      const ownership = await workload.context.store.ownership(workload.name).catch(() => undefined);
      if (ownership === undefined) return; // the node's own check says that the store is silent
      if (ownership?.owner !== call.from || ownership.epoch !== call.epoch)
        add(
          "target.other-store",
          "error",
          ownership === null
            ? "its store does not know the workload"
            : `its store says that node ${ownership.owner} owns it at epoch ${ownership.epoch}`,
          "let store: name the same store in both files",
        );
    },
  },
  {
    category: "configuration",
    async run({ workload: { name, config, context, runtime }, call: { facts } }, add) {
      let planned: SandboxPlan;
      try {
        planned = await runtime.plan(config);
      } catch (error) {
        if (error instanceof HoldfastError && error.retryable)
          return add(
            "target.no-container",
            "error",
            messageOf(error),
            "start the container runtime there, or wait until the container runs",
          );
        return add(
          "target.rootfs",
          "error",
          messageOf(error),
          "make its root file system there the same as at the source",
        );
      }
      const spec = planned.spec({ workload: name, criuDir: context.criu.dir });
      for (const { key, severity, what, cure } of disagreementsUnder(
        context.ring.keys,
        facts.agreement,
        (key) => agreementOf(config, spec, key),
      ))
        add(`target.config-differs.${key}`, severity, what, cure);
    },
  },
  {
    category: "processor, kernel and tools",
    run: async ({ workload, call: { facts } }, add) =>
      profileDifferences(facts.profile, await profileOf(workload.context), add),
  },
  {
    category: "identity",
    async run({ call: { facts } }, add) {
      if (facts.otherUser !== null && !(await hasSysResource()))
        add(
          "target.no-sys-resource",
          "error",
          `process ${facts.otherUser.pid} runs as uid ${facts.otherUser.uid}, and the agent there has no CAP_SYS_RESOURCE`,
          "grant that agent CAP_SYS_RESOURCE, or run the application as root",
        );
      await checkLabels(facts.labels, add);
    },
  },
  {
    category: "ports",
    async run({ workload: { config, journal }, call: { facts } }, add) {
      const listening = listSockets({ states: ["LISTEN"] });
      const takes = (port: number): boolean => listening.some((socket) => socket.local.port === port);
      // in a network of its own they are all free
      const upstreamPorts = isToBeApart(config) ? [] : facts.upstreamPorts;
      for (const port of new Set(upstreamPorts))
        if (takes(port))
          add(
            "target.port-taken",
            "error",
            `port ${port} is taken`,
            "stop what listens there, or give the workload another upstream port",
          );
      // as an anchor its own proxy listens there already; behind gateways none does, nor where clients come to the container
      if (journal.role === "anchor" || config.downstream === "gateway" || config.listenIn === "container")
        return;
      for (const { listen } of config.ports)
        if (
          listening.some(
            ({ local }) =>
              local.port === listen && [config.listenAddress, "0.0.0.0", "::"].includes(local.address),
          )
        )
          add(
            "target.listen-port-taken",
            "error",
            `port ${listen}, where clients are to come, is taken`,
            "stop what listens there, or give the workload another port",
          );
    },
  },
  {
    category: "space",
    async run({ workload: { limits, config, context }, call: { facts } }, add) {
      const { imageBytes, layerBytes, tmpfsBytes } = facts;
      if (imageBytes > limits.imagesBytesMax)
        add(
          "target.images-limit",
          "error",
          `no space for images: ${mega(imageBytes)} MB needed, limit ${mega(limits.imagesBytesMax)} MB`,
          "raise limits.imagesMbMax",
        );
      else if (imageBytes + layerBytes > limits.imagesBytesMax * 2)
        add(
          "target.layer-limit",
          "error",
          `no space for images and files: ${mega(imageBytes + layerBytes)} MB needed, limit ${mega(limits.imagesBytesMax * 2)} MB`,
          "raise limits.imagesMbMax (twice that is what both together may take), or write less into the container's root file system",
        );
      // the images and the memory restored from them exist side by side for a moment
      const needed = imageBytes * 2 + layerBytes + tmpfsBytes;
      if (needed > (await availableBytes()))
        add(
          "target.no-memory",
          "error",
          `too little memory: ${mega(needed)} MB needed`,
          "free memory on that node, or choose another",
        );
      const holds = config.ports.some(({ continuity }) => continuity === "replay");
      const disk = await statfs(context.stateDir);
      if (holds && disk.bavail * disk.bsize < config.limits.spillBytesMax)
        add(
          "target.no-disk",
          "warning",
          `less disk is free at ${context.stateDir} than limits.spillBytesMax lets waiting clients use`,
          "free some, or lower the limit",
          { path: context.stateDir },
        );
    },
  },
  {
    category: "reservations",
    async run(
      {
        call: {
          facts: { reservedBytes },
        },
      },
      add,
    ) {
      const { leftBytes } = accountingHere();
      // CRIU maps private memory writable while it restores, and the kernel counts all of it
      if (leftBytes !== null && reservedBytes > leftBytes)
        add(
          "target.overcommit",
          "error",
          `vm.overcommit_memory is 2 and leaves ${mega(leftBytes)} MB, the application reserves ${mega(reservedBytes)} MB`,
          "set vm.overcommit_memory to 0, raise vm.overcommit_ratio, or let the application reserve less",
        );
    },
  },
  {
    category: "address",
    async run({ workload: { vip, config } }, add) {
      if (config.vip === null) return;
      const { address, device } = config.vip;
      const shown = await runCommand("ip", ["-o", "link", "show", "dev", device], {
        source: "config",
      }).catch(() => null);
      if (shown === null)
        return add(
          "target.no-device",
          "error",
          `the device ${device} of the address is not there`,
          "correct vip.device in that node's file, or make the device, and start the agent again",
        );
      if (!/[<,]UP[,>]/.test(shown))
        add(
          "target.device-down",
          "error",
          `the device ${device} of the address is down`,
          `ip link set ${device} up`,
        );
      if (address.includes(":")) {
        const off = await readFile(`/proc/sys/net/ipv6/conf/${device}/disable_ipv6`, "utf8").catch(() => "1");
        if (off.trim() !== "0")
          add(
            "target.no-ipv6",
            "error",
            `the device ${device} has IPv6 switched off, and the address is ${address}`,
            `sysctl net.ipv6.conf.${device}.disable_ipv6=0`,
          );
      }
      if (vip === null)
        add(
          "target.no-device",
          "error",
          `the agent found no device ${device} when it started`,
          "start that agent again",
        );
      else if (vip.isHere())
        add(
          "target.address-there",
          "error",
          `the address ${address} is on this node already`,
          `ip address del it from ${device}`,
        );
    },
  },
  {
    category: "files",
    async run({ workload: { config, context, name, runtime }, call: { facts } }, add) {
      const planned = await runtime.plan(config).catch(() => null);
      if (planned === null) return; // said above
      const binds = bindsOf(planned.spec({ workload: name, criuDir: context.criu.dir }));
      for (const { source, target } of binds) {
        if (source === "/" || source === context.criu.dir) continue; // the instance's own folder, and CRIU's
        if ((await stat(source).catch(() => null)) === null)
          add(
            "target.mount-missing",
            "error",
            `${source}, mounted at ${target}, is not there`,
            "make it available on that node, or correct mounts in its file",
            { path: source },
          );
      }
      await compareFiles(facts.files, planned.lower, binds, add);
    },
  },
];
