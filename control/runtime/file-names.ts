/**
 * Names of files as text. To Linux a name is bytes (path_resolution(7)), and some are no UTF-8: of those each byte above 127 becomes
 * a lone low surrogate, as Python has it (PEP 383, surrogateescape), which no UTF-8 is read as and JSON carries.
 */
const ESCAPE = 0xdc00;
const ASCII_MAX = 127;

export function nameText(bytes: Buffer): string {
  const text = bytes.toString("utf8");
  if (Buffer.from(text, "utf8").equals(bytes)) return text;
  return Array.from(bytes, (byte) => String.fromCharCode(byte > ASCII_MAX ? ESCAPE + byte : byte)).join("");
}

/** What {@link nameText} was made of; of other text its UTF-8. */
export function nameBytes(text: string): Buffer {
  if (text.isWellFormed()) return Buffer.from(text, "utf8");
  return Buffer.concat(
    Array.from(text, (character) => {
      const escaped = character.charCodeAt(0) - ESCAPE;
      const isEscaped = character.length === 1 && escaped > ASCII_MAX && escaped <= 255;
      return isEscaped ? Buffer.from([escaped]) : Buffer.from(character, "utf8");
    }),
  );
}

/** A path of bytes. */
export function below(folder: string, name: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`${folder}/`), name]);
}
