// The viewer: two CT pictures side by side, linked, drawn by NiiVue. Its value is a scene of agent/web/viewer.py.
// Everything is asked for at this page's own server; nothing is loaded from elsewhere.

const VIEWS = [
  ["axial", "Axial", 0], ["coronal", "Coronal", 1], ["sagittal", "Sagittal", 2], ["planes", "All", 3],
  ["solid", "3-D", 4],
];
const MODES = [
  ["pair", "CT", "Both pictures as they are"],
  ["difference", "Difference", "Right minus left, HU, as colours over the right picture"],
  ["spread", "Spread", "Standard deviation over the replicas of the right protocol, HU, as a heat map"],
];
// The CT in 3-D: soft tissue as a haze, bone and oil solid, so that the tumour's labels show through. HU of `range` are 0 to 255.
const SOLID = {
  name: "mewm_solid",
  range: [-100, 900],
  colours: { R: [0, 120, 150, 236, 255], G: [0, 118, 140, 226, 250], B: [0, 112, 132, 205, 240], A: [0, 2, 3, 50, 90], I: [0, 32, 76, 110, 255] },
};
const AXIS = { axial: 2, coronal: 1, sagittal: 0 };
const CLOSER = 1.3; // 3-D: the box around a CT is mostly air
const KEPT_FILES = 10;
const SIDES = ["left", "right"];
const OTHER = { left: "right", right: "left" };
const VERSION = new URL(import.meta.url).search;

export function start({ element, props, watch }) {
  const place = element.querySelector(".mewm-viewer-place");
  new Viewer(place, () => props.value, watch);
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "oninput" || name === "onchange") node[name] = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

class Viewer {
  constructor(place, scene, watch) {
    this.place = place;
    this.files = new Map(); // address -> promise of an ArrayBuffer, the newest last
    this.window = null;
    this.view = "axial";
    this.mode = "pair";
    this.outlines = true;
    this.strength = 0.55;
    this.case = null;
    this.at = null; // crosshair, mm: kept when another picture is shown
    this.shown = { left: null, right: null };
    this.found = {}; // voxel in the middle of the tumour, by side
    this.ready = {}; // NiiVue by side, once it is there
    this.turn = { left: 0, right: 0 };
    this.nv = {};
    this.build();
    this.show(scene());
    // the library is large: fetched while nothing else is to be done
    (window.requestIdleCallback || setTimeout)(() => this.loadNiivue().catch(() => {}));
    watch("value", () => this.show(scene()));
  }

  // ---- the parts ----

  build() {
    const style = make("link", { rel: "stylesheet", href: "/mewm/assets/viewer.css" + VERSION });
    this.sides = Object.fromEntries(SIDES.map((side) => [side, this.buildSide(side)]));
    this.windows = make("div", { class: "mv-group", role: "group", "aria-label": "Grey scale" });
    this.views = make("div", { class: "mv-group", role: "group", "aria-label": "View" });
    for (const [key, name] of VIEWS) this.views.append(this.button(key, name, () => this.setView(key)));
    this.modes = make("div", { class: "mv-group", role: "group", "aria-label": "What the right picture shows" });
    for (const [key, name, title] of MODES) {
      this.modes.append(this.button(key, name, () => this.setMode(key), title));
    }
    this.outlineButton = this.button("outlines", "Outlines", () => this.setOutlines(!this.outlines), "Labels and segmentation (O)");
    this.opacity = make("input", {
      type: "range", min: "0.1", max: "1", step: "0.05", value: String(this.strength), "aria-label": "Strength of the overlay",
      oninput: () => this.setStrength(Number(this.opacity.value)),
    });
    this.downloads = make("div", { class: "mv-menu", role: "list" });
    const menu = make("details", { class: "mv-download" }, make("summary", { title: "Download what is shown as NIfTI" }, "Files"), this.downloads);
    document.addEventListener("click", (event) => { if (!menu.contains(event.target)) menu.open = false; });
    menu.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { menu.open = false; menu.querySelector("summary").focus(); }
    });
    this.bar = make("div", { class: "mv-bar" },
      make("div", { class: "mv-set" }, make("span", {}, "HU"), this.windows),
      make("div", { class: "mv-set" }, this.views),
      this.modeSet = make("div", { class: "mv-set" }, make("span", {}, "Right"), this.modes),
      make("div", { class: "mv-set" }, this.outlineButton, this.opacity),
      make("div", { class: "mv-set mv-end" },
        this.button("centre", "Centre", () => this.centre(), "Crosshair to the tumour, zoom back"),
        this.button("screenshot", "Picture", () => this.screenshot(), "Screenshot: save what is shown as PNG"), menu),
    );
    this.slice = make("input", { type: "range", min: "0", max: "1", value: "0", "aria-label": "Slice",
      oninput: () => this.toSlice(Number(this.slice.value)) });
    this.where = make("output", { class: "mv-where" });
    this.legend = make("div", { class: "mv-legend" });
    this.hint = make("p", { class: "mv-hint", role: "status" });
    this.message = make("p", { class: "mv-message", role: "status" });
    this.stage = make("div", { class: "mv-stage" }, this.sides.left.figure, this.sides.right.figure);
    this.sliceRow = make("div", { class: "mv-slice" }, make("span", {}, "Slice"), this.slice, this.where);
    this.root = make("section", { class: "mv", "aria-label": "CT viewer", "data-state": "empty" },
      this.bar, this.stage, make("div", { class: "mv-foot" }, this.sliceRow, this.legend), this.hint, this.message);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.place.replaceChildren(style, this.root);
  }

  buildSide(side) {
    const select = make("select", {
      "aria-label": side === "left" ? "Left picture" : "Right picture",
      onchange: () => this.choose(side, select.value),
    });
    const note = make("span", { class: "mv-note" });
    const canvas = make("canvas", { tabindex: "0", "data-side": side, role: "img" });
    const value = make("output", { class: "mv-value" });
    const wait = make("div", { class: "mv-wait", role: "status", hidden: true }, "Loading");
    const problem = make("div", { class: "problem", role: "alert", hidden: true });
    const swap = side === "right"
      ? make("button", { type: "button", class: "mv-swap", title: "Swap left and right", "aria-label": "Swap left and right",
        onclick: () => this.swap() }, "\u21c4")
      : "";
    const figure = make("figure", { class: "mv-side", "data-side": side },
      make("div", { class: "mv-head" }, swap, select),
      make("div", { class: "mv-canvas" }, canvas, note, value, wait, problem));
    return { figure, select, note, canvas, value, wait, problem };
  }

  button(key, name, onclick, title = "") {
    return make("button", { type: "button", "data-key": key, "aria-pressed": "false", title: title || null, onclick }, name);
  }

  press(group, key) {
    for (const button of group.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.key === key));
    }
  }

  // ---- a scene ----

  show(scene) {
    if (!scene) return;
    const same = JSON.stringify(scene);
    if (same === this.same) { this.reattach(); return; }
    this.same = same;
    this.scene = scene;
    this.reattach();
    if (scene.case !== this.case) { this.case = scene.case; this.at = null; this.found = {}; }
    this.sources = new Map(scene.sources.map((source) => [source.id, source]));
    if (!this.window) this.window = scene.windows[0].key;
    this.windows.replaceChildren(...scene.windows.map((preset) => this.button(
      preset.key, preset.name, () => this.setWindow(preset.key), `${preset.low} to ${preset.high} HU`)));
    this.press(this.windows, this.window);
    this.press(this.views, this.view);
    this.mode = scene.mode;
    this.shown = { left: scene.left, right: scene.right };
    this.hint.textContent = scene.hint || "";
    this.message.textContent = scene.message || "";
    const empty = Boolean(scene.message) || !scene.left;
    this.root.dataset.state = empty ? "empty" : "shown";
    if (empty) { for (const side of SIDES) this.clear(side); return; }
    for (const side of SIDES) this.fill(side);
    this.refresh();
  }

  reattach() { // Gradio may have drawn its template anew
    if (!this.root.isConnected) {
      const place = document.querySelector(".mewm-viewer-place:empty");
      if (place) place.replaceChildren(this.root);
    }
  }

  fill(side) {
    const groups = new Map();
    for (const source of this.sources.values()) {
      if (!groups.has(source.group)) groups.set(source.group, []);
      groups.get(source.group).push(make("option", { value: source.id }, source.title));
    }
    const options = [...groups].map(([name, entries]) => make("optgroup", { label: name }, ...entries));
    if (side === "right") options.unshift(make("option", { value: "" }, "No second picture"));
    this.sides[side].select.replaceChildren(...options);
    this.sides[side].select.value = this.shown[side] || "";
  }

  source(side) { return this.sources.get(this.shown[side]) || null; }

  choose(side, id) {
    this.shown[side] = id || null;
    this.hint.textContent = "";
    this.refresh();
  }

  swap() {
    if (!this.shown.right) return;
    this.shown = { left: this.shown.right, right: this.shown.left };
    for (const side of SIDES) this.sides[side].select.value = this.shown[side];
    this.refresh();
  }

  refresh() {
    const right = this.source("right");
    this.root.dataset.sides = right ? "2" : "1";
    for (const [key] of MODES) {
      const button = this.modes.querySelector(`[data-key="${key}"]`);
      const replicas = right ? right.replicas.length : 0;
      button.disabled = !right || (key === "spread" && replicas < 2);
      if (key === "spread") button.title = replicas < 2 ? "The right picture is no protocol with several replicas" : MODES[2][2];
    }
    if (this.mode !== "pair" && this.modes.querySelector(`[data-key="${this.mode}"]`).disabled) this.mode = "pair";
    this.press(this.modes, this.mode);
    this.load("left");
    if (right) this.load("right"); else this.clear("right");
    this.drawLegend();
    this.drawDownloads();
  }

  // ---- files ----

  layers(side) {
    const source = this.source(side);
    const ct = { kind: "ct", url: `${source.base}ct.nii?of=${encodeURIComponent(source.ref)}` };
    if (side === "right" && this.mode === "difference") {
      const from = this.source("left");
      const minus = `&minus=${encodeURIComponent(from.ref)}`;
      return [ct, { kind: "difference", url: `${source.base}difference.nii?of=${encodeURIComponent(source.ref)}${minus}` }];
    }
    if (side === "right" && this.mode === "spread") {
      return [ct, { kind: "spread", url: `${source.base}spread.nii?of=${source.replicas.map(encodeURIComponent).join(",")}` }];
    }
    if (!source.overlay) return [ct];
    return [ct, { kind: "labels", url: `${source.base}labels.nii?of=${encodeURIComponent(source.ref)}`, labels: source.labels }];
  }

  file(url) {
    const known = this.files.get(url);
    const wanted = known || fetch(url, { credentials: "same-origin" }).then(async (answer) => {
      if (answer.ok) return answer.arrayBuffer();
      const told = await answer.json().catch(() => ({}));
      throw new Error(told.error || `The picture could not be loaded (${answer.status}).`);
    }, () => { throw new Error("The server does not answer. Is it still running?"); });
    this.files.delete(url);
    this.files.set(url, wanted);
    wanted.catch(() => this.files.delete(url));
    for (const old of [...this.files.keys()].slice(0, -KEPT_FILES)) this.files.delete(old);
    return wanted;
  }

  async load(side) {
    const part = this.sides[side], source = this.source(side), layers = this.layers(side);
    const key = JSON.stringify([layers, this.case]);
    part.note.textContent = source.note;
    part.note.title = source.note;
    part.select.title = source.title;
    part.canvas.setAttribute("aria-label", `${source.title}. ${source.note}. Arrow keys: slices.`);
    if (part.key === key && !part.problem.textContent) { part.figure.hidden = false; return; }
    const turn = ++this.turn[side];
    part.key = key;
    part.figure.hidden = false;
    part.canvas.dataset.loaded = "false";
    this.tell(part, "");
    const waits = setTimeout(() => {
      part.wait.textContent = source.kind === "simulated" ? "Preparing the simulated CT\u2026" : "Loading\u2026";
      part.wait.hidden = false;
    }, 150);
    try {
      const [library, ...buffers] = await Promise.all([this.loadNiivue(), ...layers.map((layer) => this.file(layer.url))]);
      if (turn !== this.turn[side]) return;
      const nv = await this.canvas(side, library);
      const images = [];
      for (const [index, layer] of layers.entries()) images.push(await this.image(library, layer, buffers[index]));
      if (turn !== this.turn[side]) return;
      this.put(side, nv, images, layers);
      part.canvas.dataset.source = source.id;
      part.canvas.dataset.mode = layers[1] ? layers[1].kind : "ct";
      part.canvas.dataset.loaded = "true";
    } catch (error) {
      if (turn !== this.turn[side]) return;
      part.key = null;
      this.blank(side);
      this.tell(part, error.message || "The picture could not be drawn.");
    } finally {
      clearTimeout(waits);
      if (turn === this.turn[side]) part.wait.hidden = true;
    }
  }

  tell(part, problem) {
    part.problem.textContent = problem;
    part.problem.hidden = !problem;
  }

  loadNiivue() {
    this.niivue ??= import(this.scene.niivue).catch(() => {
      this.niivue = null;
      throw new Error("The viewer's script could not be loaded; reload the page.");
    });
    return this.niivue;
  }

  async canvas(side, { Niivue }) {
    this.nv[side] ??= (async () => {
      const canvas = this.sides[side].canvas;
      const nv = new Niivue({
        backColor: [0.02, 0.03, 0.04, 1], crosshairColor: [0.35, 0.78, 0.9, 0.75], crosshairWidth: 0.7, crosshairWidthUnit: "mm", crosshairGap: 5,
        fontColor: [0.82, 0.88, 0.92, 1], fontMinPx: 11, fontSizeScaling: 0.1, logLevel: "error", dragAndDropEnabled: false,
        viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", isRadiologicalConvention: true,
        isColorbar: false, show3Dcrosshair: true, multiplanarShowRender: 0, tileMargin: 2, atlasOutline: 0.9,
        isCornerOrientationText: false, loadingText: "", isResizeCanvas: true, dragMode: 1, showLegend: false,
        multiplanarForceRender: false, sagittalNoseLeft: true,
      });
      if (!canvas.getContext("webgl2")) throw new Error("This browser has no WebGL 2, which the viewer needs.");
      await nv.attachToCanvas(canvas, false);
      nv.addColormap(SOLID.name, SOLID.colours);
      withoutGradients(nv);
      nv.onLocationChange = (place) => this.moved(side, place);
      return nv;
    })();
    const nv = await this.nv[side];
    this.ready[side] = nv;
    if (this.ready.left && this.ready.right) {
      this.ready.left.broadcastTo([this.ready.right], { "2d": true, "3d": true });
      this.ready.right.broadcastTo([this.ready.left], { "2d": true, "3d": true });
    }
    return nv;
  }

  async image({ NVImage, cmapper }, layer, buffer) {
    const options = { url: `${layer.kind}.nii`, name: `${layer.kind}.nii`, buffer };
    if (layer.kind === "ct") {
      const { low, high } = this.preset();
      return NVImage.loadFromUrl({ ...options, colormap: "gray", cal_min: low, cal_max: high });
    }
    if (layer.kind === "labels") {
      const image = await NVImage.loadFromUrl(options);
      image.hdr.intent_code = 1002; // labels: drawn with outlines, never interpolated
      image.allLabels = labelColours(layer.labels);
      image.withoutLiver = labelColours(layer.labels, "liver");
      image.setColormapLabel(image.allLabels);
      return image;
    }
    const range = this.scene[layer.kind];
    const image = await NVImage.loadFromUrl({
      ...options, colormap: range.colours, cal_min: range.low, cal_max: range.high,
      ...(range.below_zero
        ? { colormapNegative: range.below_zero, cal_minNeg: -range.high, cal_maxNeg: -range.low, useNegativeCmap: true }
        : {}),
    });
    image.colormapType = 2; // transparent below the smallest value that is drawn
    return image;
  }

  put(side, nv, images, layers) {
    const other = this.ready[OTHER[side]];
    const follows = other && other.volumes.length > 0;
    // Everything is set before the one upload: NiiVue's own setters would each upload the volume again.
    nv.volumes = images;
    nv.back = images[0];
    nv.overlays = images.slice(1);
    nv.opts.sliceType = this.sliceType();
    this.dress(nv);
    nv.updateGLVolume();
    if (layers[1] && layers[1].kind === "labels") this.found[side] = widest(images[1]);
    if (this.at === null) {
      const voxel = this.found[side];
      if (voxel) nv.scene.crosshairPos = nv.vox2frac(voxel);
      this.at = Array.from(nv.frac2mm(nv.scene.crosshairPos)).slice(0, 3);
    } else {
      nv.scene.crosshairPos = nv.mm2frac(this.at);
    }
    if (follows) {
      nv.scene.pan2Dxyzmm = Array.from(other.scene.pan2Dxyzmm);
      nv.scene.renderAzimuth = other.scene.renderAzimuth;
      nv.scene.renderElevation = other.scene.renderElevation;
      nv.scene.volScaleMultiplier = other.scene.volScaleMultiplier;
    } else {
      nv.scene.renderAzimuth = 190;
      nv.scene.renderElevation = 15;
      nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
      nv.scene.volScaleMultiplier = CLOSER;
    }
    this.slices();
    nv.drawScene();
    nv.createOnLocationChange();
  }

  // ---- what is drawn ----

  preset() { return this.scene.windows.find((preset) => preset.key === this.window); }

  each(action) {
    for (const side of SIDES) {
      const nv = this.ready[side];
      if (nv && nv.volumes.length && !this.sides[side].figure.hidden) action(nv, side);
    }
  }

  sliceType() { return VIEWS.find(([key]) => key === this.view)[2]; }

  setWindow(key) {
    this.window = key;
    this.press(this.windows, key);
    this.redress();
  }

  setView(key) {
    const solid = (this.view === "solid") !== (key === "solid");
    this.view = key;
    this.press(this.views, key);
    this.each((nv) => { nv.opts.sliceType = this.sliceType(); });
    if (solid) this.redress(); else this.each((nv) => nv.drawScene());
    this.slices();
    this.drawLegend();
    this.each((nv) => nv.createOnLocationChange());
  }

  // Grey scale, outlines and maps of one picture. In 3-D the CT shows bone and oil, and organs are their labels.
  dress(nv) {
    const [ct, over] = nv.volumes;
    const { low, high } = this.preset();
    const solid = this.view === "solid";
    const labels = over && over.colormapLabel !== null;
    ct._colormap = solid ? SOLID.name : "gray";
    [ct.cal_min, ct.cal_max] = solid ? SOLID.range : [low, high];
    nv.opts.atlasOutline = labels && this.outlines && !solid ? 0.9 : 0;
    if (labels) over.setColormapLabel(solid ? over.withoutLiver : over.allLabels);
    if (over) over._opacity = !this.outlines ? 0 : labels && !solid ? 0.12 * this.strength : Math.max(0.3, this.strength);
    this.outlineButton.setAttribute("aria-pressed", String(this.outlines));
  }

  redress() {
    this.each((nv) => {
      this.dress(nv);
      nv.updateGLVolume();
    });
  }

  setMode(key) {
    this.mode = key;
    this.refresh();
  }

  setOutlines(on) {
    this.outlines = on;
    this.redress();
    this.drawLegend();
  }

  setStrength(value) {
    this.strength = value;
    clearTimeout(this.later);
    this.later = setTimeout(() => this.redress(), 120); // a slider moves faster than a volume is uploaded
  }

  centre() {
    this.each((nv, side) => {
      const voxel = this.found[side] || this.found[OTHER[side]];
      if (voxel) nv.scene.crosshairPos = nv.vox2frac(voxel);
      nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
      nv.scene.volScaleMultiplier = CLOSER;
      nv.drawScene();
      nv.createOnLocationChange();
    });
  }

  // ---- where ----

  axis() { return AXIS[this.view] ?? 2; }

  slices() {
    const nv = this.ready.left || this.ready.right;
    if (!nv || !nv.volumes.length) return;
    this.slice.max = String(nv.volumes[0].dimsRAS[this.axis() + 1] - 1);
    this.slice.disabled = this.view === "solid";
    this.slice.value = String(Math.round(nv.frac2vox(nv.scene.crosshairPos)[this.axis()]));
  }

  toSlice(number) {
    const first = this.ready.left && this.ready.left.volumes.length ? this.ready.left : null;
    if (!first) return;
    const voxel = Array.from(first.frac2vox(first.scene.crosshairPos)).slice(0, 3);
    voxel[this.axis()] = Math.min(Number(this.slice.max), Math.max(0, number));
    first.scene.crosshairPos = first.vox2frac(voxel);
    const mm = first.frac2mm(first.scene.crosshairPos);
    this.each((nv) => {
      nv.scene.crosshairPos = nv.mm2frac(mm);
      nv.drawScene();
      nv.createOnLocationChange();
    });
  }

  moved(side, place) {
    this.at = Array.from(place.mm).slice(0, 3);
    const part = this.sides[side];
    const [ct, map] = place.values;
    const mapKind = part.canvas.dataset.mode;
    let text = ct ? `${signed(ct.value)} HU` : "";
    if (map && (mapKind === "difference" || mapKind === "spread") && part.canvas.dataset.loaded === "true") {
      text += mapKind === "difference" ? `, change ${signed(map.value, true)} HU` : `, spread ${map.value.toFixed(0)} HU`;
    }
    part.value.textContent = text;
    const names = ["x", "y", "z"];
    const nv = this.ready[side];
    const voxel = nv.frac2vox(nv.scene.crosshairPos);
    if (side === "left" || !this.shown.left) {
      this.slice.value = String(Math.round(voxel[this.axis()]));
      const number = `${Math.round(voxel[this.axis()]) + 1} of ${Number(this.slice.max) + 1}`;
      const mm = names.map((name, i) => `${name} ${signed(this.at[i], true)}`).join("  ");
      this.where.textContent = this.view === "solid" ? `${mm} mm` : `${number}   ${mm} mm`;
    }
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const typing = event.target.matches("select, input, textarea");
    if (event.target.matches("canvas") && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      event.preventDefault();
      event.stopPropagation();
      this.toSlice(Number(this.slice.value) + (event.key === "ArrowUp" ? 1 : -1));
    } else if (!typing && event.key.toLowerCase() === "o") {
      this.setOutlines(!this.outlines);
    } else if (!typing && /^[1-3]$/.test(event.key) && this.scene.windows[Number(event.key) - 1]) {
      this.setWindow(this.scene.windows[Number(event.key) - 1].key);
    }
  }

  // ---- below the pictures ----

  drawLegend() {
    const parts = [];
    const seen = new Map();
    if (this.outlines) {
      for (const side of SIDES) {
        const source = this.source(side);
        const map = side === "right" && this.mode !== "pair";
        if (source && source.overlay && !map) {
          for (const label of Object.values(source.labels)) {
            if (this.view !== "solid" || label.name !== "liver") seen.set(label.name, label.colour);
          }
        }
      }
    }
    for (const [name, colour] of seen) {
      const spot = make("i", {});
      spot.style.background = colour;
      parts.push(make("span", { class: "mv-key" }, spot, name));
    }
    if (this.mode !== "pair" && this.source("right")) parts.push(this.scale(this.scene[this.mode]));
    this.legend.replaceChildren(...parts);
  }

  scale(range) {
    const bar = make("canvas", { width: "160", height: "10", class: "mv-scale" });
    const span = make("span", { class: "mv-key" });
    const name = this.mode === "difference" ? "Right minus left" : "Standard deviation over replicas";
    span.append(`${name}, HU: `, range.below_zero ? `\u2212${range.high} ` : `${range.low} `, bar, ` ${range.high}`,
      range.below_zero ? ` (within \u00b1${range.low} not drawn)` : ` (below ${range.low} not drawn)`);
    this.loadNiivue().then(({ cmapper }) => {
      const pen = bar.getContext("2d");
      const warm = cmapper.colormap(range.colours);
      const cold = range.below_zero ? cmapper.colormap(range.below_zero) : null;
      for (let x = 0; x < 160; x++) {
        const share = cold ? Math.abs(x - 79.5) / 79.5 : x / 159;
        const lut = cold && x < 80 ? cold : warm;
        const i = Math.min(255, Math.round(share * 255)) * 4;
        pen.fillStyle = `rgb(${lut[i]}, ${lut[i + 1]}, ${lut[i + 2]})`;
        pen.fillRect(x, 0, 1, 10);
      }
    }, () => {});
    return span;
  }

  drawDownloads() {
    const links = [];
    for (const side of SIDES) {
      const source = this.source(side);
      if (!source) continue;
      for (const layer of this.layers(side)) {
        const what = { ct: "CT", labels: "labels", difference: "difference map", spread: "spread map" }[layer.kind];
        const name = `${this.case}_${source.id}_${layer.kind}`.replace(/[^A-Za-z0-9._-]+/g, "-");
        links.push(make("a", { href: layer.url, download: `${name}.nii`, role: "listitem" },
          `${side === "left" ? "Left" : "Right"}: ${what} (NIfTI)`));
      }
    }
    this.downloads.replaceChildren(...links);
  }

  screenshot() {
    const shown = [];
    this.each((nv, side) => shown.push([nv, side]));
    if (!shown.length) { this.hint.textContent = "There is no picture to save yet."; return; }
    const head = 46, foot = 26;
    const width = shown.reduce((sum, [nv]) => sum + nv.canvas.width, 0);
    const height = Math.max(...shown.map(([nv]) => nv.canvas.height));
    const sheet = make("canvas", { width: String(width), height: String(height + head + foot) });
    const pen = sheet.getContext("2d");
    pen.fillStyle = "#0b1117";
    pen.fillRect(0, 0, sheet.width, sheet.height);
    let x = 0;
    for (const [nv, side] of shown) {
      nv.drawScene(); // the picture is there only until the browser draws the page
      pen.drawImage(nv.canvas, x, head);
      pen.fillStyle = "#e6edf2";
      pen.font = "600 15px sans-serif";
      pen.fillText(this.source(side).title, x + 12, 20, nv.canvas.width - 24);
      pen.fillStyle = "#a9b8c4";
      pen.font = "12px sans-serif";
      pen.fillText(this.source(side).note, x + 12, 38, nv.canvas.width - 24);
      x += nv.canvas.width;
    }
    const { name, low, high } = this.preset();
    pen.fillText(`Case ${this.case}, window ${name} ${low} to ${high} HU. For research only; simulated pictures are no observations.`,
      12, height + head + 18, width - 24);
    sheet.toBlob((blob) => {
      const link = make("a", { href: URL.createObjectURL(blob), download: `${this.case}.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      this.hint.textContent = "Screenshot saved.";
    });
  }

  blank(side) {
    const nv = this.ready[side];
    if (nv && nv.volumes.length) { nv.volumes = []; nv.updateGLVolume(); }
    this.sides[side].value.textContent = "";
  }

  clear(side) {
    const part = this.sides[side];
    this.turn[side] += 1;
    part.key = null;
    part.figure.hidden = true;
    part.canvas.dataset.loaded = "false";
    part.wait.hidden = true;
    this.tell(part, "");
  }
}

// NiiVue 0.69 computes surface normals with every upload, for a light that this viewer does not use: as long as all the rest.
function withoutGradients(nv) {
  const { blurShader, refreshLayers } = nv;
  const use = blurShader.use.bind(blurShader);
  blurShader.use = (gl) => {
    use(gl);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(0, 0, 0, 0);
  };
  nv.refreshLayers = (...given) => {
    refreshLayers.apply(nv, given);
    nv.gl.disable(nv.gl.SCISSOR_TEST);
  };
}

function signed(value, plus = false) {
  const rounded = Math.round(value);
  return rounded < 0 ? `\u2212${-rounded}` : plus && rounded > 0 ? `+${rounded}` : String(rounded);
}

function labelColours(labels, hidden = null) {
  const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: ["none"] };
  for (const [value, { name, colour }] of Object.entries(labels)) {
    table.R.push(parseInt(colour.slice(1, 3), 16));
    table.G.push(parseInt(colour.slice(3, 5), 16));
    table.B.push(parseInt(colour.slice(5, 7), 16));
    table.A.push(name === hidden ? 0 : 255);
    table.I.push(Number(value));
    table.labels.push(name);
  }
  return table;
}

// Voxel in the middle of the slice that shows most of the tumour (labels from 2 on, vessels apart): where to look first.
function widest(image) {
  const [, nx, ny, nz] = image.dimsRAS;
  const values = image.img;
  let best = null;
  for (let z = 0; z < nz; z++) {
    let n = 0, sx = 0, sy = 0;
    const start = z * nx * ny;
    for (let i = 0; i < nx * ny; i++) {
      if (values[start + i] === 2) { n += 1; sx += i % nx; sy += (i / nx) | 0; }
    }
    if (n > (best ? best.n : 0)) best = { n, at: [sx / n, sy / n, z] };
  }
  return best && best.at;
}
