/** All peers, in the order they are shown. */
import { direct } from "./direct.ts";
import { envoyHttp, envoyTcp } from "./envoy.ts";
import { envoyBeforeHoldfast, gateways, haproxyBeforeHoldfast } from "./gateway.ts";
import { haproxyHttp, haproxyTcp } from "./haproxy.ts";
import { holdfast } from "./holdfast.ts";
import { httpProxy } from "./http-proxy.ts";
import { httpxy } from "./httpxy.ts";
import { nginxHttp, nginxStream } from "./nginx.ts";
import { nodePipe } from "./node-pipe.ts";
import type { Peer } from "./peer.ts";

export const peers: readonly Peer[] = [
  direct,
  holdfast("tcp"),
  holdfast("http"),
  holdfast("websocket"),
  holdfast("replay"),
  ...gateways,
  envoyBeforeHoldfast,
  haproxyBeforeHoldfast,
  envoyTcp,
  envoyHttp,
  haproxyTcp,
  haproxyHttp,
  nginxStream,
  nginxHttp,
  nodePipe,
  httpProxy,
  httpxy,
];
