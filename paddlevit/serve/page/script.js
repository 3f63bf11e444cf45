"use strict";
const at = id => document.getElementById(id);
let server = { overlay: true, max_bytes: Infinity };
let latest = 0;

const about = fetch("health").then(response => response.json()).then(health => {
  server = health;
  const more = health.names.length < health.classes ? ", …" : "";
  at("about").textContent = `${health.model}: ${health.classes} classes: ${health.names.join(", ")}${more}`;
  at("limits").textContent = `(an image file, up to ${mebibytes(health.max_bytes)})`;
}).catch(() => {});

at("command").textContent = `curl --data-binary @photo.jpg ${new URL("predict", location.href)}`;
at("file").addEventListener("change", () => { show(at("file").files); at("file").value = ""; });
document.addEventListener("paste", event => show(event.clipboardData.files));
document.addEventListener("dragover", event => { event.preventDefault(); at("drop").classList.add("over"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  at("drop").classList.remove("over");
  if (!event.dataTransfer.files.length) return fail("That is no file: drop an image from a folder.");
  show(event.dataTransfer.files);
});

function mebibytes(bytes) { return `${+(bytes / 2 ** 20).toPrecision(3)} MiB`; }

function fail(message) {
  at("status").textContent = "";
  at("error").textContent = message;
  at("error").hidden = false;
}

async function show(files) {
  if (!files.length) return;
  const file = files[0], mine = ++latest;
  at("error").hidden = at("result").hidden = true;
  at("status").textContent = `Looking at ${file.name} …`;
  await about;
  try {
    const sent = await fitting(file);
    if (sent.size > server.max_bytes)
      throw new Error(`the file has ${mebibytes(sent.size)}, allowed: ${mebibytes(server.max_bytes)}`);
    const found = await ask(sent, server.overlay);
    if (mine === latest) await draw(file, found);
  } catch (error) {
    if (mine === latest) fail(`${file.name}: ${error.message}`);
  }
}

// Phones take larger photographs than the server accepts: these become JPEGs of at most 2048 pixels a side, upright.
async function fitting(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap || file.size <= server.max_bytes && bitmap.width * bitmap.height <= server.max_pixels) return file;
  const scale = Math.min(1, 2048 / Math.max(bitmap.width, bitmap.height));
  const size = { width: Math.ceil(bitmap.width * scale), height: Math.ceil(bitmap.height * scale) };
  const canvas = Object.assign(document.createElement("canvas"), size);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, size.width, size.height);
  return new Promise(done => canvas.toBlob(done, "image/jpeg", 0.95));
}

async function ask(file, overlay) {
  let response;
  try {
    response = await fetch(`predict?overlay=${overlay}`, { method: "POST", body: file });
  } catch {
    throw new Error("the server cannot be reached");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.status === 503 && overlay) return { ...await ask(file, false), busy: true };
  if (!response.ok) throw new Error(answer.error || `the server answers with ${response.status}`);
  return answer;
}

async function draw(file, found) {
  const [best] = found.classes;
  await picture(at("image"), URL.createObjectURL(file));
  at("caption").textContent = file.name + (found.busy ? " (too busy to show where it was seen: try again)" : "");
  at("seen").hidden = !found.overlay;
  if (found.overlay) {
    await picture(at("overlay"), found.overlay);
    at("overlay").alt = `The image with bright colours where it speaks for ${best.name}`;
    at("where").textContent = `Bright: what speaks for “${best.name}”. Dark margins: not seen.`;
  }
  at("classes").replaceChildren(...found.classes.map(row));
  const unknown = found.known === false ? "None of these classes; the closest: " : "";
  at("status").replaceChildren(unknown, part("b", "", best.name), ` – ${percent(best.probability)}`);
  at("drop").classList.add("small");
  at("result").hidden = false;
}

function picture(img, source) {
  if (img.src.startsWith("blob:")) URL.revokeObjectURL(img.src);
  img.src = source;
  return img.decode().catch(() => {}).then(() => img.classList.toggle("tiny", img.naturalWidth <= 64));
}

function percent(probability) { return `${(100 * probability).toFixed(1)} %`; }

function part(tag, kind, text = "") {
  return Object.assign(document.createElement(tag), { className: kind, textContent: text });
}

function row({ name, probability }) {
  const item = part("li", "");
  const track = part("span", "track"), bar = part("div", "bar");
  bar.style.width = `${100 * probability}%`;
  track.append(bar);
  item.append(part("span", "name", name), part("span", "percent", percent(probability)), track);
  return item;
}
