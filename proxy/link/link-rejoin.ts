/** A dialler's attempt to have its link go on over another connection, up to the WELCOME; what follows is the link's. */
import { randomBytes } from "node:crypto";
import { encodeRejoin, isWelcome, NONCE_BYTES, secretOf } from "./link-auth.ts";
import { FRAME, type FrameType, frame } from "./link-codec.ts";
import type { ConnectionSink, Gone, LinkConnection } from "./link-connection.ts";
import { isResumable, speaksTls } from "./link-tls.ts";

export interface RejoinOptions {
  connect(sink: ConnectionSink): LinkConnection;
  key: Buffer;
  secret: Buffer;
  session: string;
  attempt: number;
  encrypted: boolean;
  /** The connection is the caller's: it gives it another sink. */
  onWelcome(connection: LinkConnection, nextSecret: Buffer): void;
  /** The acceptor does not know the link, or says that its secret is not the right one. @param code from RST_CODE */
  onRefused(code: number): void;
  /** Nothing has come of it; another attempt may succeed, unless nobody listens there ("refused"). */
  onFailed(why: Gone): void;
}

export function rejoin(options: RejoinOptions): LinkConnection {
  const { key, secret, session, attempt, encrypted } = options;
  let said: Buffer | null = null;
  const fail = (why: Gone): void => {
    connection.destroy();
    options.onFailed(why);
  };
  const onNonce = (nonce: Buffer): void => {
    if (!isResumable(nonce)) {
      // a proxy of the version before is there now: it cannot know the link
      fail("refused");
      return;
    }
    const hello = encodeRejoin({ key, secret }, nonce, randomBytes(NONCE_BYTES), { session, attempt });
    said = hello;
    const greet = (): void => connection.write(frame(FRAME.rejoin, hello));
    if (encrypted && speaksTls(nonce)) connection.secure(key, greet);
    else greet();
  };
  const sink: ConnectionSink = {
    onData: () => fail("fault"),
    onFrame: (type: FrameType, payload: Buffer) => {
      if (said === null) {
        if (type === FRAME.nonce) onNonce(payload);
        else fail("fault");
      } else if (type === FRAME.welcome && isWelcome(key, said, payload)) {
        connection.greeted();
        options.onWelcome(connection, secretOf(key, said));
      } else if (type === FRAME.rst) {
        connection.destroy();
        options.onRefused(payload[0] as number);
      } else fail("fault");
    },
    onWritten: () => {},
    onGone: options.onFailed,
    onThrown: () => fail("fault"),
  };
  const connection = options.connect(sink);
  return connection;
}
