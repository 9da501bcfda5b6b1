/**
 * The Container Runtime Interface of containerd or CRI-O, as far as a container is looked up in it
 * (k8s.io/cri-api, pkg/apis/runtime/v1/api.proto; field numbers are from there). The only file that imports gRPC.
 */
import { Client, credentials } from "@grpc/grpc-js";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { decodeFields, encodeFields, type Field } from "../../criu/protobuf.ts";
import { parseExactJson } from "../exact-json.ts";

const CALL_MS_MAX = 5_000;
const RUNNING = 1;
/** of a ContainerStatus */
const IMAGE_REF = 9;
/** of a Container */
const POD_SANDBOX_ID = 2;
/** of a PodSandboxStatus */
const SANDBOX_NETWORK = 5;

export interface PodContainer {
  namespace: string;
  pod: string;
  container: string;
  /** null: whichever pod has that name */
  uid: string | null;
}

export interface RunningContainer {
  id: string;
  /** of its PID 1, as the runtime numbers it */
  pid: number;
  /** as the runtime refers to it */
  image: string;
  /** id of its pod's sandbox */
  sandbox: string;
}

/** What an image would start; see "Config" in github.com/opencontainers/image-spec, config.md. */
export interface ImageCommand {
  entrypoint: string[];
  arguments: string[];
}

export class CriClient {
  readonly #client: Client;
  readonly #socket: string;

  /** @param socket path of the runtime's Unix socket */
  constructor(socket: string) {
    this.#socket = socket;
    this.#client = new Client(`unix://${socket}`, credentials.createInsecure());
  }

  /** Of the runtime, e.g. "containerd" and "2.1.9". @throws HoldfastError `CRI_UNREACHABLE` */
  async version(): Promise<{ name: string; version: string }> {
    const fields = decodeFields(await this.#call("Version", []));
    return { name: textOf(fields, 2), version: textOf(fields, 3) };
  }

  /** null: no such container runs here. @throws HoldfastError `CRI_UNREACHABLE` */
  async find({ namespace, pod, container, uid }: PodContainer): Promise<RunningContainer | null> {
    const labels = {
      "io.kubernetes.pod.namespace": namespace,
      "io.kubernetes.pod.name": pod,
      "io.kubernetes.container.name": container,
      ...(uid === null ? {} : { "io.kubernetes.pod.uid": uid }),
    };
    const selector = Object.entries(labels).map(
      ([key, value]): Field => [
        4,
        [
          [1, key],
          [2, value],
        ],
      ],
    );
    const filter: Field = [1, [[2, [[1, RUNNING]]], ...selector]];
    const [found] = decodeFields(await this.#call("ListContainers", [filter]));
    if (found === undefined) return null;
    const listed = decodeFields(found.bytes);
    const id = textOf(listed, 1);
    const status = decodeFields(
      await this.#call("ContainerStatus", [
        [1, id],
        [2, true],
      ]),
    );
    // containerd's and CRI-O's words alike (crictl(1), `inspect`)
    const { pid } = infoIn(status) as { pid?: number };
    const facts = decodeFields(bytesOf(status, 1));
    const image = textOf(facts, IMAGE_REF);
    return pid === undefined || pid === 0
      ? null
      : { id, pid, image, sandbox: textOf(listed, POD_SANDBOX_ID) };
  }

  /** Of a pod's network, the first where it has several; null: it has none. @throws HoldfastError `CRI_UNREACHABLE` */
  async addressOf(sandbox: string): Promise<string | null> {
    const reply = decodeFields(await this.#call("PodSandboxStatus", [[1, sandbox]]));
    const status = decodeFields(bytesOf(reply, 1));
    return textOf(decodeFields(bytesOf(status, SANDBOX_NETWORK)), 1) || null;
  }

  /** @param image {@link RunningContainer.image} @throws HoldfastError `CRI_UNREACHABLE` */
  async commandOf(image: string): Promise<ImageCommand> {
    const status = decodeFields(
      await this.#call(
        "ImageStatus",
        [
          [1, [[1, image]]],
          [2, true],
        ],
        "ImageService",
      ),
    );
    const { imageSpec } = infoIn(status) as {
      imageSpec?: { config?: { Entrypoint?: string[] | null; Cmd?: string[] | null } };
    };
    return { entrypoint: imageSpec?.config?.Entrypoint ?? [], arguments: imageSpec?.config?.Cmd ?? [] };
  }

  close(): void {
    this.#client.close();
  }

  #call(method: string, request: Field[], service = "RuntimeService"): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(
        `/runtime.v1.${service}/${method}`,
        (fields: Field[]) => encodeFields(fields),
        (bytes: Buffer) => bytes,
        request,
        { deadline: Date.now() + CALL_MS_MAX },
        (error, response) => {
          if (error === null && response !== undefined) resolve(response);
          else
            reject(
              fail(
                "CRI_UNREACHABLE",
                `the container runtime at ${this.#socket} does not answer: ${messageOf(error)}`,
                {
                  cause: error,
                },
              ),
            );
        },
      );
    });
  }
}

type Decoded = ReturnType<typeof decodeFields>;

function bytesOf(fields: Decoded, number: number): Buffer {
  return fields.find((field) => field.number === number)?.bytes ?? Buffer.alloc(0);
}

function textOf(fields: Decoded, number: number): string {
  return bytesOf(fields, number).toString();
}

/** What a runtime tells beyond the API, where it is asked to be verbose: a map of texts, of which "info" is JSON. */
function infoIn(status: ReturnType<typeof decodeFields>): unknown {
  const info = status
    .filter(({ number }) => number === 2)
    .map(({ bytes }) => decodeFields(bytes))
    .find((entry) => entry.some(({ number, bytes }) => number === 1 && bytes.toString() === "info"));
  return parseExactJson(info?.find(({ number }) => number === 2)?.bytes.toString("utf8") ?? "{}");
}
