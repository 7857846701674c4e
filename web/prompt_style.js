// How the prompt box looks.

/** Of the eight images, on their marks and in the row below the boxes. */
export const COLOURS = ["#5b9cf0", "#f0a04b", "#62c370", "#d773d0", "#e0d04a", "#4cc8c8", "#b08cf0", "#e88a8a"];

export const STYLE = `
textarea[data-kosmos-g] { font: 12px/21px ui-monospace, monospace !important; letter-spacing: 0 !important; }
.kosmos-g-layer { position: absolute; overflow: hidden; pointer-events: none; color: transparent; z-index: 2;
  white-space: pre-wrap; overflow-wrap: break-word; box-sizing: border-box; border-color: transparent !important; }
.kosmos-g-layer .mark { padding: 2px 0; border-radius: 3px; background: #345 center/cover; outline: 1.5px solid var(--slot, #89a); }
.kosmos-g-layer .mark.named { color: #fff; }
.kosmos-g-layer .mark.raw { background: none !important; color: transparent; }
.kosmos-g-layer .wrong { border-radius: 3px; background: #c228 !important; outline: 1.5px solid #f55; }
.kosmos-g-layer .stronger { box-shadow: inset 0 -2px #f90; }
.kosmos-g-layer .weaker { box-shadow: inset 0 -2px #48f; }
.kosmos-g-layer .partner { background: #fff3; outline: 1px solid #fff8; }
.kosmos-g-status { font: 11px/15px sans-serif; color: var(--input-text, #ddd); overflow: hidden; cursor: default; }
.kosmos-g-status .images { display: flex; gap: 5px; flex-wrap: wrap; padding: 2px; }
.kosmos-g-status button { all: unset; cursor: pointer; display: flex; align-items: center; gap: 4px; height: 28px;
  padding-right: 4px; border-radius: 4px; outline: 1.5px solid var(--slot); background: #0004; max-width: 130px; }
.kosmos-g-status button.wrong { outline-color: #f55; background: #c224; }
.kosmos-g-status button span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.kosmos-g-status img, .kosmos-g-menu img { width: 28px; height: 28px; object-fit: cover; border-radius: 4px; }
.kosmos-g-status .line { padding: 2px; }
.kosmos-g-status.waiting .line { opacity: 0.6; }
.kosmos-g-status .error { color: #f77; padding: 0 2px; }
.kosmos-g-status .warning { color: #fb4; padding: 0 2px; }
.kosmos-g-menu { position: fixed; z-index: 10000; background: #222; color: #ddd; border: 1px solid #666;
  border-radius: 5px; font: 12px sans-serif; padding: 3px; }
.kosmos-g-menu div { display: flex; align-items: center; gap: 7px; padding: 2px 7px 2px 2px; border-radius: 4px;
  cursor: pointer; max-width: 320px; }
.kosmos-g-menu div.chosen { background: #358; }`;
