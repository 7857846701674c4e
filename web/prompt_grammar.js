// Where marks, brackets and weights stand in a prompt. The grammar is that of kosmos_core/prompt.py; this only says what
// to draw, and the server says what is right.
const HEAVIEST = 100;
const LEXEME = /\\[\\<():]|<(?:i|image)(?:_?[0-9]+)?>|[():]|[^\\<():]+|[\\<]/g;

/** Pieces {start, end, kind, slot, weight, why, wrong, partner} of a text; marks are added to `taken`. */
export function pieces(text, images, taken) {
  const found = [];
  const open = [];
  const free = () => images.find((image) => !taken.has(image.slot));
  for (const match of text.matchAll(LEXEME)) {
    const word = match[0];
    const piece = { start: match.index, end: match.index + word.length, kind: "text", weights: [] };
    found.push(piece);
    if (word === "(") {
      piece.kind = "bracket";
      open.push({ piece, index: found.length - 1, colon: -1 });
    } else if (word === ":" && open.length) {
      open.at(-1).colon = found.length - 1;
    } else if (word === ")") {
      piece.kind = "bracket";
      const group = open.pop();
      if (!group) {
        Object.assign(piece, { wrong: true, why: "This ) closes nothing: open it with (, or write \\) for a plain one." });
        continue;
      }
      Object.assign(piece, { partner: group.piece });
      group.piece.partner = piece;
      if (group.colon < 0) continue;
      const spelled = text.slice(found[group.colon].end, piece.start).trim();
      const weight = /^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$/.test(spelled) ? Number(spelled) : NaN;
      for (const each of found.slice(group.index)) each.weights.push(weight);
      for (const each of found.slice(group.colon, -1)) {
        if (weight >= 0 && weight <= HEAVIEST) Object.assign(each, { kind: "weight" });
        else Object.assign(each, { wrong: true, why: `'${spelled}' is no weight from 0 to ${HEAVIEST}, such as 1.3; write \\: where the colon is text.` });
      }
    } else if (word.length > 1 && word[0] === "<") {
      const digits = word.replace(/[^0-9]/g, "");
      const image = digits ? images.find((each) => each.slot === Number(digits)) : free();
      Object.assign(piece, { kind: "mark", image });
      if (image) {
        taken.add(image.slot);
        piece.why = `image_${image.slot}: ${image.name}`;
      } else {
        piece.wrong = true;
        piece.why = digits ? `Nothing is connected to image_${Number(digits)}: connect an image there, or drop one here.`
          : images.length ? "More marks than images: connect another image, or name one again as "
            + `<i${images[0].slot}>.` : "No image is connected: connect one to image_1, or drop one here.";
      }
    }
  }
  for (const { piece } of open) {
    Object.assign(piece, { wrong: true, why: "This ( is never closed: close it, or write \\( for a plain one." });
  }
  for (const piece of found) {
    piece.weight = piece.weights.reduce((product, weight) => product * weight, 1);
    if (piece.weights.length && piece.weight >= 0) piece.why = [piece.why, `weight ${+piece.weight.toFixed(4)}`].filter(Boolean).join(", ");
  }
  return found;
}
