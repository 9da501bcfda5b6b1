/** of pino (https://github.com/pinojs/pino/blob/main/docs/api.md#level-string), the least important first */
export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"];
