// The page's form: it asks the API for meshes, shows previews as scales arrive, then the meshes with their downloads.
const byId = (id) => document.getElementById(id);
const POLL_MS = 150;
let facts = null, source = null, asked = 0;

async function call(path, options) {
  const answer = await fetch(path, options).catch(() => { throw new Error("the server does not answer"); });
  const body = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(body.error);
  return body;
}

// --- GLB: the one mesh of our own files ------------------------------------------------------------------------------

function parseGlb(buffer) {
  const length = new DataView(buffer).getUint32(12, true);
  const gltf = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 20, length)));
  const primitive = gltf.meshes[0].primitives[0];
  const read = (index, width) => {
    const accessor = gltf.accessors[index], part = gltf.bufferViews[accessor.bufferView];
    const Kind = { 5126: Float32Array, 5125: Uint32Array, 5123: Uint16Array, 5121: Uint8Array }[accessor.componentType];
    const start = 28 + length + (part.byteOffset || 0) + (accessor.byteOffset || 0);
    return new Kind(buffer.slice(start, start + accessor.count * width * Kind.BYTES_PER_ELEMENT));
  };
  return { points: read(primitive.attributes.POSITION, 3), corners: read(primitive.indices, 1) };
}

async function shapeOf(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error("the mesh cannot be fetched");
  // the model's box: all meshes of a request are seen from the same distance
  return { positions: "", indices: true, role: "model", frame: { centre: [0, 0, 0], radius: 1.25 }, ...parseGlb(await answer.arrayBuffer()) };
}

// --- cards -----------------------------------------------------------------------------------------------------------

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function card(number, title) {
  const canvas = element("canvas", { tabIndex: 0 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-roledescription", "3D view");
  canvas.setAttribute("aria-label", `${title}, mesh ${number + 1}. Arrow keys turn it, plus and minus zoom.`);
  const words = element("span", {}), files = element("span", { className: "files" });
  const figure = element("figure", { className: "card" }, canvas, element("figcaption", {}, words, files));
  byId("meshes").append(figure);
  return { canvas, words, files, figure, name: `mesh-${asked}-${number}` };
}

function clear() {
  for (const canvas of document.querySelectorAll("#meshes canvas")) globalThis.g3ptViewer.remove(canvas);
  byId("meshes").replaceChildren();
}

async function present(cards, state) {
  for (const [number, mesh] of state.meshes.entries()) {
    const { canvas, words, files, figure, name } = cards[number];
    if (mesh.error) {
      globalThis.g3ptViewer.remove(canvas);
      canvas.replaceWith(element("div", { className: "empty" }, mesh.error));
      words.textContent = `seed ${mesh.seed}`;
      continue;
    }
    words.textContent = `seed ${mesh.seed}, ${mesh.faces} faces${mesh.watertight ? ", watertight" : ""}`;
    files.replaceChildren(...Object.entries(mesh.files).map(([kind, href]) => element("a", { href, download: "", textContent: kind.toUpperCase() })));
    globalThis.g3ptViewer.show(canvas, await shapeOf(mesh.files.glb), name);
    figure.dataset.ready = "true";
  }
}

// --- form ------------------------------------------------------------------------------------------------------------

function small(file) {
  if (facts.max_upload_mb && file.size > facts.max_upload_mb * 2 ** 20) throw new Error(`a request has at most ${facts.max_upload_mb} MB`);
  return file;
}

function say(status, error = "") {
  byId("status").textContent = status;
  byId("error").textContent = error;
  byId("error").hidden = !error;
}

function base64(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(new Error("the picture cannot be read"));
    reader.readAsDataURL(file);
  });
}

async function upload(file) {
  const ending = file.name.includes(".") ? file.name.split(".").pop() : "none";
  if (source?.file !== file) {
    say("converting the mesh");
    source = { file, ...(await call(`/api/sources?format=${encodeURIComponent(ending)}`, {
      method: "POST", body: file, headers: { "content-type": "application/octet-stream" },
    })) };
  }
  return { source: source.source, keep_scales: Number(byId("keep").value) };
}

async function wanted() {
  const value = (id) => Number(byId(id).value);
  const found = {
    cfg_text: value("cfg-text"), cfg_image: value("cfg-image"), seed: value("seed"), num: value("num"),
    resolution: value("resolution"), previews: true,
  };
  if (byId("text").value.trim()) found.text = byId("text").value;
  if (byId("image").files.length) found.image = await base64(small(byId("image").files[0]));
  if (byId("mesh").files.length) Object.assign(found, await upload(small(byId("mesh").files[0])));
  return found;
}

async function make() {
  const request = await wanted();
  let state = await call("/api/requests", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(request) });
  asked += 1;
  clear();
  const title = request.text || (request.source ? "variation" : "picture");
  const cards = Array.from({ length: request.num }, (_, number) => card(number, title));
  let shown = 0;
  while (state.state === "waiting" || state.state === "running") {
    say(state.state === "waiting" ? `waiting, ${state.before} before this` : `drawing, ${shown || "no"} of ${facts.scales.length} scales shown`);
    await new Promise((done) => setTimeout(done, POLL_MS));
    state = await call(`/api/requests/${state.id}`);
    const last = state.previews.at(-1);
    if (last && last.scales > shown && state.state === "running") {
      shown = last.scales;
      globalThis.g3ptViewer.show(cards[0].canvas, await shapeOf(last.file), cards[0].name);
      cards[0].words.textContent = `after ${shown} of ${facts.scales.length} scales`;
      cards[0].figure.dataset.preview = String(shown);
    }
  }
  if (state.state === "failed") throw new Error(state.error);
  await present(cards, state);
  say(`done in ${state.seconds.toFixed(1)} s${state.note ? `; ${state.note}` : ""}`);
}

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("make").disabled = true;
  say("");
  await make().catch((error) => say("", error.message));
  byId("make").disabled = false;
});
byId("mesh").addEventListener("change", () => (byId("keep-field").hidden = !byId("mesh").files.length));
byId("keep").addEventListener("input", () => (byId("kept").value = byId("keep").value));

// --- facts -----------------------------------------------------------------------------------------------------------

call("/api/model").then((found) => {
  facts = found;
  byId("model").textContent = found.name;
  byId("image-field").hidden = !found.reads_images;
  byId("keep").max = found.scales.length;
  const licences = Object.entries(found.licenses).map(([name, count]) => `${name}: ${count}`).join(", ");
  byId("trained").textContent = `${found.name} has ${found.parameters.toLocaleString("en")} parameters` +
    (found.objects ? ` and was trained on ${found.objects.toLocaleString("en")} objects (${licences}).` : ".");
  byId("limits").replaceChildren(...found.limits.map((text) => element("li", { textContent: text })));
  byId("words-box").hidden = !found.words.length;
  byId("words").textContent = found.words.join(", ");
  byId("credits").textContent = found.credits || "This export has no credits.";
}).catch((error) => say("", error.message));
