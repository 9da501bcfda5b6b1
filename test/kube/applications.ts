/** The applications of image {@link APPS} in pods: as a user writes them, and as the webhook makes them. */
import type { InjectOptions } from "#control/kubernetes/inject/inject.ts";
import type { KubeObject } from "./cluster.ts";
import { APPS, CONTROL, INSIDE } from "./images.ts";

/** As the chart has it, for pods that are made without its webhook. */
export const INJECT: InjectOptions = {
  image: INSIDE.name,
  imagePullPolicy: "Never",
  proxy: { image: CONTROL.name, default: "sidecar" },
};

/** Where each listens. */
export const APP_PORT = 9000;

type AppContainer = {
  name: string;
  image: string;
  imagePullPolicy: string;
  command?: string[];
  env: { name: string; value: string }[];
  readinessProbe: object;
};

/** @param command absent: the entrypoint of the image */
export function appContainer(command?: string[], image = APPS.name): AppContainer {
  return {
    name: "app",
    image,
    imagePullPolicy: "Never",
    ...(command === undefined ? {} : { command }),
    env: [
      { name: "HOST", value: "0.0.0.0" },
      { name: "PORT", value: String(APP_PORT) },
    ],
    readinessProbe: { tcpSocket: { port: APP_PORT }, periodSeconds: 1 },
  };
}

/** Leads to pods with the label `app`, from a port of every node too. @param metadata its name is that label */
export function nodePortService(
  metadata: KubeObject["metadata"],
  nodePort: number,
  targetPort = APP_PORT,
): KubeObject {
  return {
    apiVersion: "v1",
    kind: "Service",
    metadata,
    spec: {
      type: "NodePort",
      selector: { app: metadata.name },
      ports: [{ port: 80, targetPort, nodePort }],
    },
  };
}

/**
 * Of a container that waits for its application, as the webhook makes it; with an emptyDir at /data, in which an init container has written, and
 * which it may only read at /read; in it, at /data/part, is a part of another, the whole of which is at /whole.
 */
export function waitingSpec(container: AppContainer & { args?: string[] }): object {
  const volume = { name: "holdfast", mountPath: "/.holdfast" };
  return {
    terminationGracePeriodSeconds: 0,
    securityContext: { seccompProfile: { type: "RuntimeDefault" } },
    initContainers: [
      { name: "holdfast", image: INSIDE.name, imagePullPolicy: "Never", volumeMounts: [volume] },
      {
        ...{ name: "prepares", image: APPS.name, imagePullPolicy: "Never" },
        command: ["/bin/sh", "-c", "echo >/data/prepared"],
        volumeMounts: [{ name: "data", mountPath: "/data" }],
      },
    ],
    containers: [
      {
        ...container,
        command: ["/.holdfast/init", "-P", "--", ...(container.command ?? [])],
        volumeMounts: [
          { ...volume, readOnly: true },
          { name: "data", mountPath: "/data" },
          { name: "data", mountPath: "/read", readOnly: true },
          { name: "whole", mountPath: "/whole" },
          { name: "whole", mountPath: "/data/part", subPath: "part" },
        ],
      },
    ],
    volumes: ["holdfast", "data", "whole"].map((name) => ({ name, emptyDir: {} })),
  };
}
