/** Every program of the matrix, in the order of the table. */
import type { Program } from "./program.ts";
import { bun } from "./programs/bun.ts";
import { deno } from "./programs/deno.ts";
import { etcd } from "./programs/etcd.ts";
import { go } from "./programs/go.ts";
import { java } from "./programs/java.ts";
import { mariadb } from "./programs/mariadb.ts";
import { memcached } from "./programs/memcached.ts";
import { mosquitto } from "./programs/mosquitto.ts";
import { nginx } from "./programs/nginx.ts";
import { nodeCluster } from "./programs/node-cluster.ts";
import { php } from "./programs/php.ts";
import { postgresql } from "./programs/postgresql.ts";
import { pythonForking, pythonMultiprocessing } from "./programs/python.ts";
import { redis } from "./programs/redis.ts";
import { shell } from "./programs/shell.ts";
import { sshd } from "./programs/sshd.ts";
import { uvicorn } from "./programs/uvicorn.ts";

export const programs: Program[] = [
  postgresql,
  mariadb,
  redis,
  memcached,
  etcd,
  mosquitto,
  nginx,
  php,
  uvicorn,
  pythonMultiprocessing,
  pythonForking,
  java,
  go,
  deno,
  bun,
  nodeCluster,
  sshd,
  shell,
];
