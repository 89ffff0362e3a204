// The list of cases, and importing one. Its value comes from agent/web/cases.py; `select` tells which case to open.

const ROUTE = "/mewm/cases/";
const VERSION = new URL(import.meta.url).search;
const ROLES = [["image", "CT"], ["labels", "Labels"], ["record", "Clinical record"]];

export function start({ element, props, watch, trigger }) {
  const place = element.querySelector(".mewm-cases-place");
  new Cases(place, () => props.value, watch, (name) => trigger("select", { case: name }));
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node[name] = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

class Cases {
  constructor(place, value, watch, open) {
    this.value = value;
    this.open = open;
    this.files = []; // {file, role}
    this.list = make("ul", { class: "mc-list", "aria-label": "Cases" });
    this.input = make("input", { type: "file", multiple: true, class: "mc-input", id: "mewm-case-files",
      accept: ".nii,.gz,.zip,.yaml,.yml,.json", onchange: () => { this.add(this.input.files); this.input.value = ""; } });
    this.drop = make("label", { class: "mc-drop", for: "mewm-case-files" },
      make("strong", {}, "Import a CT"), make("span", {}, "Drop files here, or choose them"),
      make("small", {}, "NIfTI, or a zip of DICOM slices. With it, if you have them: labels (NIfTI), clinical record (YAML)."),
      this.input);
    this.form = make("div", { class: "mc-form" });
    this.status = make("p", { class: "mc-status", role: "status" });
    this.problem = make("p", { class: "problem", role: "alert", hidden: true });
    const style = make("link", { rel: "stylesheet", href: "/mewm/assets/cases.css" + VERSION });
    this.root = make("section", { class: "mc", "aria-label": "Cases" }, this.list, this.drop, this.form, this.status, this.problem);
    for (const name of ["dragenter", "dragover"]) {
      this.root.addEventListener(name, (event) => {
        event.preventDefault();
        this.drop.classList.add("mc-over");
      });
    }
    this.root.addEventListener("dragleave", (event) => {
      if (!this.root.contains(event.relatedTarget)) this.drop.classList.remove("mc-over");
    });
    this.root.addEventListener("drop", (event) => {
      event.preventDefault();
      this.drop.classList.remove("mc-over");
      const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
      if (items.some((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()?.isDirectory)) {
        this.tell("A folder can't be dropped here: pack the DICOM slices as one zip.");
      } else {
        this.add(event.dataTransfer.files);
      }
    });
    place.replaceChildren(style, this.root);
    this.draw();
    watch("value", () => this.draw());
  }

  draw() {
    const { rows, opened } = this.value() || { rows: [], opened: null };
    const told = JSON.stringify([rows, opened]);
    if (told === this.told) return;
    this.told = told;
    this.list.replaceChildren(...rows.map((row) => this.card(row, row.name === opened)));
    if (!rows.length) this.list.replaceChildren(make("li", { class: "mc-none" }, "Reading the cases\u2026"));
  }

  card(row, opened) {
    const picture = row.thumbnail
      ? make("img", { src: row.thumbnail, alt: "", loading: "lazy", width: "84", height: "64",
        onerror: (event) => event.target.replaceWith(make("span", { class: "mc-blank" }, "no picture")) })
      : make("span", { class: "mc-blank" }, "no picture");
    const about = row.problem || row.about;
    const tags = [row.origin === "synthetic" ? "synthetic" : null, row.problem || row.plannable ? null : "no labels: not plannable"];
    const button = make("button", { type: "button", class: "mc-card", "aria-current": opened ? "true" : null,
      disabled: Boolean(row.problem), title: row.problem || `Open ${row.name}`, onclick: () => this.open(row.name) },
    picture, make("span", { class: "mc-text" }, make("b", {}, row.name),
      row.case_id && row.case_id !== row.name ? make("small", {}, row.case_id) : null,
      make("small", { class: row.problem ? "mc-bad" : "" }, about),
      ...tags.filter(Boolean).map((tag) => make("i", {}, tag))));
    return make("li", { "data-case": row.name }, button);
  }

  // ---- import ----

  add(files) {
    this.tell("");
    this.series = null;
    for (const file of files) this.files.push({ file, role: this.guess(file) });
    this.drawForm();
  }

  guess(file) {
    const name = file.name.toLowerCase();
    if (/\.(ya?ml|json)$/.test(name)) return "record";
    const taken = this.files.some((entry) => entry.role === "image");
    if (/label|mask|seg/.test(name) && /\.nii(\.gz)?$/.test(name)) return "labels";
    return taken ? "labels" : "image";
  }

  drawForm() {
    if (!this.files.length) { this.form.replaceChildren(); return; }
    const rows = this.files.map((entry, index) => {
      const role = make("select", { "aria-label": `What ${entry.file.name} is`, onchange: () => { entry.role = role.value; this.drawForm(); } },
        ...ROLES.map(([key, name]) => make("option", { value: key, selected: key === entry.role }, name)));
      return make("li", {}, make("span", { title: entry.file.name }, entry.file.name), make("small", {}, size(entry.file.size)), role,
        make("button", { type: "button", "aria-label": `Leave ${entry.file.name} out`, onclick: () => { this.files.splice(index, 1); this.drawForm(); } }, "\u00d7"));
    });
    this.tumour = make("input", { type: "number", min: "1", max: "255", value: "2", id: "mewm-tumour-label" });
    const labels = this.files.some((entry) => entry.role === "labels")
      ? make("label", { class: "mc-number", for: "mewm-tumour-label" }, "Number that means tumour in the labels", this.tumour) : null;
    this.form.replaceChildren(make("ul", { class: "mc-files" }, ...rows), ...(labels ? [labels] : []),
      make("div", { class: "mc-buttons" },
        make("button", { type: "button", class: "mc-go", onclick: () => this.import() }, "Import"),
        make("button", { type: "button", onclick: () => this.reset() }, "Cancel")));
  }

  async import() {
    const asked = {};
    for (const [role, name] of ROLES) {
      const found = this.files.filter((entry) => entry.role === role);
      if (found.length > 1) return this.tell(`Two files are marked as ${name}; keep one.`);
      if (role === "image" && !found.length) return this.tell("Which file is the CT? Mark one of them.");
      if (found.length) asked[role] = found[0].file;
    }
    const limit = this.value().limits.upload_mib;
    const large = Object.values(asked).find((file) => file.size > limit * 1048576);
    if (large) return this.tell(`${large.name} is larger than ${limit} MiB, the most that can be uploaded.`);
    const tumour = Number(this.tumour.value) || 2;
    this.tell("");
    this.busy(true);
    try {
      const ids = { tumour_label: tumour };
      for (const [role, file] of Object.entries(asked)) ids[role] = (await this.upload(file)).id;
      await this.ask(ids);
    } catch (error) {
      this.tell(error.message);
    } finally {
      this.busy(false);
    }
  }

  upload(file) {
    return new Promise((done, failed) => {
      const call = new XMLHttpRequest();
      call.open("POST", `${ROUTE}upload?name=${encodeURIComponent(file.name)}`);
      call.upload.onprogress = (event) => {
        this.say(`Uploading ${file.name}: ${Math.round((100 * event.loaded) / event.total)} %`);
      };
      call.onload = () => {
        const told = parsed(call.responseText);
        if (call.status === 200) done(told);
        else failed(new Error(told.error || `The upload was refused (${call.status}).`));
      };
      call.onerror = () => failed(new Error("The upload broke off. Is the server still running?"));
      this.running = call;
      call.send(file);
    });
  }

  async ask(ids) {
    this.say("Checking the images\u2026");
    const answer = await fetch(`${ROUTE}import`, { method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify(ids) }).catch(() => { throw new Error("The server does not answer. Is it still running?"); });
    const told = parsed(await answer.text());
    if (!answer.ok) throw new Error(told.error || `The import was refused (${answer.status}).`);
    if (told.choose) { this.choose(ids, told.choose); return; }
    this.reset();
    this.say(`Imported as ${told.case}.`);
    this.open(told.case);
  }

  choose(ids, series) {
    this.say("");
    const patients = Math.max(...series.map((one) => one.patient));
    const rows = series.map((one) => {
      const text = `${one.phase === "unknown" ? "CT" : one.phase + " phase"}, ${one.day === null ? "no date" : "day " + one.day}, `
        + `${one.slices} slices, ${one.spacing_mm.join(" x ")} mm` + (one.parts > 1 ? `, part ${one.part} of ${one.parts}` : "")
        + (patients > 1 ? `, patient ${one.patient}` : "");
      return make("label", { class: "mc-series" },
        make("input", { type: "checkbox", value: String(one.index), disabled: Boolean(one.problem), name: "series" }),
        make("span", {}, text, one.problem ? make("small", { class: "mc-bad" }, one.problem) : null));
    });
    const go = async () => {
      const chosen = [...this.form.querySelectorAll("input[name=series]:checked")].map((box) => box.value);
      if (!chosen.length) return this.tell("Choose one series at least.");
      this.tell("");
      this.busy(true);
      try { await this.ask({ ...ids, series: chosen.join(",") }); } catch (error) { this.reset(); this.tell(error.message); } finally { this.busy(false); }
    };
    this.form.replaceChildren(
      make("p", {}, `${series.length} CT series are in there. Which ones belong to the case? The first study is before treatment, later ones are follow-up.`),
      make("div", { role: "group", "aria-label": "CT series" }, ...rows),
      make("div", { class: "mc-buttons" }, make("button", { type: "button", class: "mc-go", onclick: go }, "Import"),
        make("button", { type: "button", onclick: () => {
          for (const role of ["image", "labels", "record"]) if (ids[role]) fetch(`${ROUTE}upload/${ids[role]}`, { method: "DELETE" });
          this.reset();
        } }, "Cancel")));
    this.form.querySelector("input:not(:disabled)")?.focus();
  }

  reset() {
    this.files = [];
    this.running?.abort();
    this.form.replaceChildren();
    this.say("");
    this.tell("");
  }

  busy(on) {
    this.root.setAttribute("aria-busy", String(on));
    for (const part of this.form.querySelectorAll("button.mc-go, select, input")) part.disabled = on;
    if (!on && !this.problem.hidden) this.say("");
  }

  say(text) { this.status.textContent = text; }

  tell(problem) {
    this.problem.textContent = problem;
    this.problem.hidden = !problem;
  }
}

function parsed(text) {
  try { return JSON.parse(text); } catch { return {}; }
}

function size(bytes) {
  return bytes < 1 << 20 ? `${Math.max(1, Math.round(bytes / 1024))} KB` : `${(bytes / (1 << 20)).toFixed(1)} MB`;
}
