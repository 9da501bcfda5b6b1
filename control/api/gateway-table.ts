/**
 * What the controller of a cluster tells its gateways, in a ConfigMap: an entry for each Service whose clients come to them, called
 * NAMESPACE.NAME, a JSON text. The controller alone writes it; what it has given out of port numbers is in it.
 */
import * as z from "zod";

/** of the Services: those whose clients come to gateways */
export const GATEWAY_LABEL = "holdfast.dev/gateway";
export const GATEWAY_ENABLED = "enabled";
/** On such a Service, as it has no selector of its own: which pods it is for, as NAME=VALUE,NAME=VALUE. */
export const SELECTOR_ANNOTATION = "holdfast.dev/selector";
/** … where a client's session has its name: JSON, as `session` of a gateway's route */
export const SESSION_ANNOTATION = "holdfast.dev/session";
/** … "true": each connection to the application begins with a header of the PROXY protocol */
export const PROXY_PROTOCOL_ANNOTATION = "holdfast.dev/send-proxy-protocol";
/** of the ConfigMap itself: the port number that was given out last, for what is free is given out again as late as can be */
export const LAST_PORT_ANNOTATION = "holdfast.dev/last-port";
/** of the gateways' own pods: the ConfigMap that they follow */
export const TABLE_LABEL = "holdfast.dev/gateway-table";

const portNumber = z.int().min(1).max(65_535);

/** How clients of one Service are led. */
export const serviceEntry = z.strictObject({
  /** each once, in the order of the Service's */
  ports: z.array(
    z.strictObject({
      /** of the Service's: "" where it has only one */
      name: z.string(),
      /** at every gateway */
      listen: portNumber,
      /** of the workloads', as their `listen` */
      port: portNumber,
    }),
  ),
  /** new clients are led to these */
  workloads: z.array(z.string()),
  session: z.unknown().optional(),
  sendProxyProtocol: z.literal(true).optional(),
});
export type ServiceEntry = z.infer<typeof serviceEntry>;
