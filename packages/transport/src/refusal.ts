import { MigrationError, isErrorCode } from "@precopy/protocol";
import type { ErrorCode } from "@precopy/protocol";
import { formatHead } from "./http-head.js";

/** Why a request was refused, beside the status: our code, and a sentence. Also how one side tells the other what it has against it. */
const CODE_HEADER = "Precopy-Code";
const REASON_HEADER = "Precopy-Reason";
const REASON_CHARACTERS_MAX = 500;

const STATUS: Partial<Record<ErrorCode, string>> = {
  ERR_BAD_MESSAGE: "400 Bad Request",
  ERR_TOKEN_REQUIRED: "401 Unauthorized",
  ERR_STALE_GENERATION: "409 No Such Channel",
  ERR_TLS_REQUIRED: "426 Upgrade Required",
  ERR_TLS_NOT_OFFERED: "400 Bad Request",
};

const printable = (text: string): string => text.replace(/[^\x20-\x7e]+/g, " ").slice(0, REASON_CHARACTERS_MAX);
export const refusalHeaders = ({ code, message }: MigrationError): string[] => [
  `${CODE_HEADER}: ${code}`,
  `${REASON_HEADER}: ${printable(message)}`,
];

/** A whole answer, after which the connection ends. */
export const refusalAnswer = (error: MigrationError, more: readonly string[] = []): string =>
  formatHead(`HTTP/1.1 ${STATUS[error.code] ?? "403 Forbidden"}`, [
    "Connection: close",
    "Content-Length: 0",
    ...refusalHeaders(error),
    ...more,
  ]);

/** What the peer has against us, if it says so; undefined if it says nothing of the kind. @param header the value of one, by its name in lower case */
export function refusalIn(header: (name: string) => string | undefined, peer: string): MigrationError | undefined {
  const code = header(CODE_HEADER.toLowerCase());
  if (code === undefined || !isErrorCode(code)) return undefined;
  const reason = printable(header(REASON_HEADER.toLowerCase()) ?? "");
  return new MigrationError(code, `${peer} refused us${reason === "" ? "" : `: ${reason}`}`);
}
