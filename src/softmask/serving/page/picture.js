// The panels as a picture: what the browser laid out, drawn once more on a canvas.

const MARGIN = 24;
const DENSITY = 2;

function pictureOf(root) {
  const bounds = root.getBoundingClientRect();
  const canvas = document.createElement("canvas");
  canvas.width = (bounds.width + 2 * MARGIN) * DENSITY;
  canvas.height = (bounds.height + 2 * MARGIN) * DENSITY;
  const context = canvas.getContext("2d");
  context.scale(DENSITY, DENSITY);
  context.imageSmoothingEnabled = false;
  context.fillStyle = getComputedStyle(document.body).backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.translate(MARGIN - bounds.left, MARGIN - bounds.top);
  paint(context, root, 1);
  return new Promise((resolve) => canvas.toBlob(resolve));
}

function paint(context, node, alpha) {
  if (node.nodeType === Node.TEXT_NODE) return paintText(context, node, alpha);
  if (!(node instanceof Element) || node.matches(".unseen")) return;
  const style = getComputedStyle(node);
  const shown = alpha * Number(style.opacity);
  if (style.display === "none" || style.visibility === "hidden" || shown < 0.01) return;
  const rect = node.getBoundingClientRect();
  const box = [rect.left, rect.top, rect.width, rect.height];
  context.globalAlpha = shown;
  context.fillStyle = style.backgroundColor;
  context.fillRect(...box);
  paintBorders(context, rect, style);
  if (node instanceof HTMLCanvasElement) context.drawImage(node, ...box);
  context.save();
  if (style.overflowX === "clip") clipTo(context, box);
  for (const child of node.childNodes) paint(context, child, shown);
  context.restore();
}

function clipTo(context, box) {
  context.beginPath();
  context.rect(...box);
  context.clip();
}

function paintBorders(context, { left, top, right, bottom }, style) {
  const sides = {
    Top: (w) => [left, top, right - left, w],
    Bottom: (w) => [left, bottom - w, right - left, w],
    Left: (w) => [left, top, w, bottom - top],
    Right: (w) => [right - w, top, w, bottom - top],
  };
  for (const [side, boxOf] of Object.entries(sides)) {
    const width = parseFloat(style[`border${side}Width`]);
    if (!width || style[`border${side}Style`] === "none") continue;
    context.fillStyle = style[`border${side}Color`];
    context.fillRect(...boxOf(width));
  }
}

/** Word by word, as the browser broke the lines. */
function paintText(context, node, alpha) {
  const style = getComputedStyle(node.parentElement);
  context.globalAlpha = alpha;
  context.fillStyle = style.color;
  context.font = `${style.fontStyle} ${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  const range = document.createRange();
  for (const { 0: word, index } of node.data.matchAll(/\S+/g)) {
    range.setStart(node, index);
    range.setEnd(node, index + word.length);
    const rect = range.getBoundingClientRect();
    const { fontBoundingBoxAscent: up, fontBoundingBoxDescent: down } = context.measureText(word);
    context.fillText(word, rect.left, rect.top + (rect.height - up - down) / 2 + up);
  }
}

/** Hands a file to whoever sits there. */
function save(blob, name) {
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
