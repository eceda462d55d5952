// Colours of the strip: even steps of OKLab lightness in one hue, away from the background, so that
// they read the same with any colour vision and in grey.

const RAMPS = {
  light: "#f1eee6 #ecd9ba #e6c38e #dfad5c #d19940 #bf8733 #ad7525 #9b6317 #8a5206",
  dark: "#2a2b30 #45392f #61472b #7e5521 #966624 #ab7934 #bf8d44 #d5a153 #eab663",
};
const MARKS = {
  light: { unread: "#d5d1c7", fresh: "#1f8a4c", done: "#dfe9e0" },
  dark: { unread: "#3d3f45", fresh: "#57c785", done: "#24352b" },
};
const LEVELS = 256;

const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
// A pixel of ImageData, read as one little-endian number.
const pixel = ([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red;

function palette() {
  const theme = isDark() ? "dark" : "light";
  const stops = RAMPS[theme].split(" ").map(channels);
  const level = (i) => {
    const place = (i / (LEVELS - 1)) * (stops.length - 1);
    const below = Math.min(Math.floor(place), stops.length - 2);
    return stops[below].map((c, k) => Math.round(c + (stops[below + 1][k] - c) * (place - below)));
  };
  const marks = Object.entries(MARKS[theme]).map(([name, hex]) => [name, pixel(channels(hex))]);
  return {
    ramp: Int32Array.from({ length: LEVELS }, (_, i) => pixel(level(i))),
    ...Object.fromEntries(marks),
  };
}
