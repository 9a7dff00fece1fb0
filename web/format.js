/** Numbers as people read them. */

export function gib(bytes) {
  return bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${(bytes / 2 ** 20).toFixed(0)} MiB`;
}

/** Bytes in the unit in which speeds of disks and networks are given, with thousands set apart. */
export function megabytes(bytes) {
  return Math.round(bytes / 1e6).toLocaleString("en");
}

const DAY = 24 * 3600;

/** Seconds as "0.42 s", "12 s", "3:05", "1:02:05" or "5 d". */
export function duration(seconds) {
  if (seconds >= 2 * DAY) return `${Math.round(seconds / DAY)} d`;
  if (seconds < 10) return `${seconds.toFixed(seconds < 1 ? 2 : 1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** Seconds that are only estimated, for a countdown: no tenths, which would suggest more than is known. */
export function countdown(seconds) {
  return seconds < 60 ? `${Math.max(Math.round(seconds), 0)} s` : duration(seconds);
}

export function pace(secondsPerStep) {
  return secondsPerStep < 10 ? secondsPerStep.toFixed(2) : secondsPerStep.toFixed(1);
}
