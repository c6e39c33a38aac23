/**
 * Search by photo on a shop's page: what {% visual_search_widget %} is with JavaScript.
 *
 * The address holds the whole state of a search; this script asks for the same address' results alone and puts them into
 * the page. A photo is turned upright and made smaller here, sent once, and named by a token from then on. It stays in
 * this tab, so that it can be cropped after coming back, or sent again when its token is too old.
 * Parts are found by data-vs-… attributes. No inline style or script, no blob: or data: address: default-src 'self' will do.
 */

const LONGEST_PX = 1024; // of the photo that is sent; encoders read 224 to 512
const PHOTO_BYTES = 300_000; // what it may weigh
const QUALITIES = [0.85, 0.7, 0.55, 0.4];
const CROP_MIN = 0.08; // of a side; smaller parts show nothing
const CROP_STEP = 0.02;
const SETTLE_MS = 400; // after the last change of crop or filters
const RETRIES = 4; // of an answer that says "try again"
const RETRY_SECONDS = 5; // where it does not say when
const TIMEOUT_MS = 90_000; // of one request; a photo on a slow line takes a while
const KEPT_PHOTOS = 5; // remembered by token, to go back to
const STORED = "visual-search-photo";
const WHOLE = [0, 0, 1, 1];

class Problem extends Error {
  constructor(code, detail = "", retryAfter = 0) {
    super(detail || code);
    Object.assign(this, { code, detail, retryAfter });
  }
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const show = (element, isShown) => element && (element.hidden = !isShown);

// ---- photos

/** Refuse what is no photo before anything is sent. Several files are a misunderstanding, not a search. */
function chosenFile(files) {
  if (files.length > 1) throw new Problem("photo_not_single");
  const [file] = files;
  if (!file.size) throw new Problem("photo_empty");
  if (file.type && !file.type.startsWith("image/")) throw new Problem("photo_unsupported");
  return file;
}

/** Draw a file upright and small. Returns its JPEG; the file itself where this browser can't read it (HEIC, mostly). */
async function prepare(file, canvas, maxBytes, signal) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    if (file.size > maxBytes) throw new Problem("photo_too_large");
    return { blob: file, isShown: false };
  } finally {
    signal?.throwIfAborted(); // a newer photo has the canvas
  }
  const scale = Math.min(1, LONGEST_PX / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // the ground of what is transparent, as on the server
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  let blob;
  for (const quality of QUALITIES) {
    blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", quality));
    signal?.throwIfAborted();
    if (blob && blob.size <= PHOTO_BYTES) break;
  }
  return blob ? { blob, isShown: true } : { blob: file, isShown: true };
}

/** Keep the photo in this tab, for the next page. A private window or a full one may refuse. */
function store(token, blob) {
  const reader = new FileReader();
  return new Promise((done) => {
    reader.onload = () => {
      try {
        sessionStorage.setItem(STORED, JSON.stringify({ token, type: blob.type, data: reader.result.split(",")[1] }));
        done(true);
      } catch {
        done(false);
      }
    };
    reader.onerror = () => done(false);
    reader.readAsDataURL(blob);
  });
}

function stored() {
  try {
    const { token, type, data } = JSON.parse(sessionStorage.getItem(STORED));
    return { token, blob: new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], { type }) };
  } catch {
    return null;
  }
}

function forgetStored() {
  try {
    sessionStorage.removeItem(STORED);
  } catch {} // storage that is forbidden holds nothing
}

// ---- requests

/** Ask, with the progress of what is sent (0 to 1). XMLHttpRequest, because fetch does not tell that. */
function request(address, { body, signal, onprogress } = {}) {
  return new Promise((done, fail) => {
    const xhr = new XMLHttpRequest();
    xhr.open(body ? "POST" : "GET", address);
    xhr.timeout = TIMEOUT_MS;
    xhr.onload = () => done(xhr);
    xhr.onerror = xhr.ontimeout = () => fail(new Problem("network"));
    xhr.onabort = () => fail(new DOMException("", "AbortError"));
    if (onprogress) xhr.upload.onprogress = (event) => event.lengthComputable && onprogress(event.loaded / event.total);
    signal.addEventListener("abort", () => xhr.abort());
    xhr.send(body);
  });
}

/** Return the parts of an answer, or throw what it says is wrong; answers of proxies have but a status. */
function partsOf(xhr) {
  const page = new DOMParser().parseFromString(xhr.responseText, "text/html");
  const error = page.querySelector("[data-vs-error]");
  const answer = page.querySelector("[data-vs-answer]");
  // A 429 names its time in its sentence: too long to wait for with a page open.
  const retryAfter = [502, 503, 504].includes(xhr.status) ? Number(xhr.getResponseHeader("Retry-After")) || RETRY_SECONDS : 0;
  if (error) throw Object.assign(new Problem(error.dataset.code, error.textContent, retryAfter), { parts: { page, answer } });
  if (xhr.status === 413) throw new Problem("photo_too_large");
  if (xhr.status === 403) throw new Problem("page_expired");
  if (xhr.status !== 200 || !answer) throw new Problem("search_unavailable", "", retryAfter);
  return { page, answer };
}

function pause(seconds, signal) {
  return new Promise((done, fail) => {
    const timer = setTimeout(done, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      fail(new DOMException("", "AbortError"));
    });
  });
}

// ---- the crop

/** Return the crop that an address or a field names; the whole photo where it makes no sense. */
function readCrop(text) {
  const [left, top, right, bottom, ...more] = (text || "").split(",").map(Number);
  const isInside = left >= 0 && top >= 0 && right <= 1 && bottom <= 1;
  const isCrop = !more.length && isInside && Math.min(right - left, bottom - top) >= CROP_MIN - 0.001;
  return isCrop ? [left, top, right, bottom] : [...WHOLE];
}

/** Let the shopper mark a part of the photo. `onchange(crop)`: left, top, right, bottom as shares of its sides. */
function cropper(box, percentWords, onchange) {
  const frame = box.parentElement;
  const edges = [...box.querySelectorAll("[data-vs-edge]")];
  let crop = [...WHOLE];

  function set(values, isTold = true) {
    crop = values;
    const [left, top, right, bottom] = crop;
    Object.assign(box.style, {
      left: `${left * 100}%`, top: `${top * 100}%`, width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%`,
    });
    edges.forEach((edge, side) => {
      const percent = Math.round(crop[side] * 100);
      edge.setAttribute("aria-valuenow", percent);
      edge.setAttribute("aria-valuetext", percentWords(percent));
    });
    box.classList.toggle("is-whole", isWhole());
    if (isTold) onchange(crop);
  }
  const isWhole = () => crop.every((value, side) => Math.abs(value - WHOLE[side]) < 0.005);
  const withSide = (values, side, value) => {
    const low = side < 2 ? 0 : values[side - 2] + CROP_MIN;
    const high = side < 2 ? values[side + 2] - CROP_MIN : 1;
    return values.map((old, at) => (at === side ? clamp(value, low, high) : old));
  };

  box.addEventListener("keydown", (event) => {
    const side = Number(event.target.dataset.vsEdge);
    if (Number.isNaN(side)) return;
    const step = {
      ArrowLeft: -CROP_STEP, ArrowUp: -CROP_STEP, ArrowRight: CROP_STEP, ArrowDown: CROP_STEP,
      PageUp: -CROP_STEP * 5, PageDown: CROP_STEP * 5, Home: -1, End: 1,
    }[event.key];
    if (!step) return;
    event.preventDefault();
    set(withSide(crop, side, crop[side] + step));
  });

  frame.addEventListener("pointerdown", (event) => {
    const { vsEdge, vsCorner } = event.target.dataset;
    const isOutside = !box.contains(event.target);
    if (event.button || (event.target === box && isWhole() && event.pointerType !== "mouse")) return;
    event.preventDefault();
    const area = frame.getBoundingClientRect();
    const at = (moved) => [clamp((moved.clientX - area.x) / area.width, 0, 1), clamp((moved.clientY - area.y) / area.height, 0, 1)];
    const start = at(event);
    const from = crop;
    const sides = (vsEdge ?? vsCorner)?.split(" ").map(Number);
    const draws = !sides && (isOutside || isWhole()); // a new part is drawn where there is none to move
    if (vsEdge) event.target.focus({ preventScroll: true });
    const move = (moved) => {
      const [x, y] = at(moved);
      if (sides) {
        set(sides.reduce((values, side) => withSide(values, side, values[side] + (side % 2 ? y - start[1] : x - start[0])), from), false);
      } else if (draws) {
        const drawn = [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
        if (drawn[2] - drawn[0] >= CROP_MIN && drawn[3] - drawn[1] >= CROP_MIN) set(drawn, false);
      } else {
        const dx = clamp(x - start[0], -from[0], 1 - from[2]);
        const dy = clamp(y - start[1], -from[1], 1 - from[3]);
        set([from[0] + dx, from[1] + dy, from[2] + dx, from[3] + dy], false);
      }
    };
    const end = () => {
      frame.removeEventListener("pointermove", move);
      frame.removeEventListener("pointerup", end);
      frame.removeEventListener("pointercancel", end);
      if (crop !== from) onchange(crop);
    };
    frame.setPointerCapture(event.pointerId);
    frame.addEventListener("pointermove", move);
    frame.addEventListener("pointerup", end);
    frame.addEventListener("pointercancel", end);
  });

  return {
    set: (values) => set(values, false),
    isWhole,
    get value() {
      return isWhole() ? "" : crop.map((share) => share.toFixed(3)).join(",");
    },
  };
}

// ---- the widget

function enhance(root) {
  const part = (name) => root.querySelector(`[data-vs-part="${name}"]`);
  const find = (name) => root.querySelector(`[data-vs-${name}]`);
  const form = find("form");
  const found = part("results");
  const canvas = find("canvas");
  const input = find("file");
  const { token: tokenField, crop: cropField, text: textField } = form.elements;
  const sentences = find("sentences").content;
  const sentence = (code, values = {}) =>
    Object.entries(values).reduce(
      (text, [name, value]) => text.replace(`{${name}}`, value),
      (sentences.querySelector(`[data-code="${code}"]`) ?? sentences.querySelector('[data-code="search_unavailable"]')).textContent,
    );
  const photos = new Map(); // by token: those of this visit
  const first = { address: location.href, parts: ["examples", "filters", "results"].map((name) => [name, part(name).innerHTML]) };
  let photo = null; // {blob, isShown}: the one that is searched with
  let running = null; // AbortController of what is going on
  let settling = 0;
  let shown = location.pathname + location.search;

  const crop = cropper(find("crop"), (percent) => sentence("cropped", { percent }), () => {
    showCrop();
    settle();
  });

  // -- what is said

  function say(code, values) {
    find("said").textContent = code ? sentence(code, values) : "";
  }

  function complain(problem) {
    const box = find("error");
    box.textContent = problem ? problem.detail || sentence(problem.code) : "";
    if (problem) box.dataset.code = problem.code;
    else delete box.dataset.code;
  }

  function busy(isBusy, share = null) {
    found.classList.toggle("is-busy", isBusy);
    found.setAttribute("aria-busy", isBusy);
    show(find("wait"), isBusy);
    if (share === null) find("progress").removeAttribute("value");
    else find("progress").value = share * 100;
  }

  // -- what is searched with

  function showPhoto() {
    const hadFocus = find("photo").contains(document.activeElement);
    show(find("preview"), photo);
    show(find("choose"), !photo);
    show(find("frame"), photo?.isShown);
    show(find("blind"), photo && !photo.isShown);
    find("photo").classList.toggle("has-photo", Boolean(photo));
    find("frame").style.setProperty("--_ratio", canvas.width / canvas.height);
    if (hadFocus) (photo ? find('action="choose"') : input).focus({ preventScroll: true });
    showCrop();
  }

  function showCrop() {
    cropField.value = crop.value;
    find('action="whole"').disabled = crop.isWhole();
  }

  async function setPhoto(blob, { token = "", values = WHOLE, signal } = {}) {
    photo = { blob, ...(await prepare(blob, canvas, root.dataset.maxBytes, signal)) };
    tokenField.value = token;
    crop.set(values);
    showPhoto();
  }

  function dropPhoto() {
    photo = null;
    tokenField.value = "";
    input.value = "";
    crop.set([...WHOLE]);
    showPhoto();
  }

  /** Return the form as the parameters of an address. */
  function parameters() {
    const data = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      const isSaid = typeof value === "string" && value.trim() && name !== "csrfmiddlewaretoken";
      if (isSaid && !(name === "crop" && !tokenField.value)) data.append(name, value);
    }
    return data;
  }

  const isAsked = () => Boolean(photo || tokenField.value || textField.value.trim() || form.elements.like);

  // -- searching

  /** Run one thing at a time; what is new takes the place of what is going on. Problems are told, not thrown. */
  async function run(task) {
    clearTimeout(settling);
    running?.abort();
    const own = (running = new AbortController());
    complain(null);
    found.classList.add("is-open");
    busy(true);
    try {
      await task(own.signal);
    } catch (problem) {
      if (running !== own) return; // something newer runs
      if (problem.name === "AbortError") say("cancelled");
      else {
        say("");
        complain(problem instanceof Problem ? problem : new Problem("search_unavailable"));
        if (!(problem instanceof Problem)) console.error(problem);
      }
    }
    if (running === own) {
      running = null;
      busy(false);
    }
  }

  /** Return the answer to the form; wait and try again where the shop asks for it. */
  async function ask(signal) {
    for (let attempt = 0; ; attempt++) {
      try {
        return partsOf(await (photo && !tokenField.value ? send(signal) : fetchResults(signal)));
      } catch (problem) {
        if (!(problem instanceof Problem)) throw problem; // cancelled
        if (problem.code === "photo_expired" && photo && tokenField.value) {
          tokenField.value = ""; // it is here still: send it again
          continue;
        }
        if (problem.code.startsWith("photo_")) dropPhoto();
        if (!problem.retryAfter || attempt >= RETRIES) throw problem;
        await countDown(problem.retryAfter, signal);
      }
    }
  }

  async function countDown(seconds, signal) {
    for (let left = seconds; left > 0; left--) {
      say("waiting", { seconds: left });
      await pause(1, signal);
    }
  }

  function fetchResults(signal) {
    say("searching");
    return request(`${root.dataset.resultsAddress}?${parameters()}`, { signal });
  }

  function send(signal) {
    say("sending");
    const body = new FormData(form);
    body.set("photo", photo.blob, "photo");
    const onprogress = (share) => {
      busy(true, share < 1 ? share : null);
      if (share === 1) say("searching");
    };
    return request(root.dataset.resultsAddress, { body, signal, onprogress });
  }

  /** Put an answer into the page. Who is operating a filter goes on operating it; focus that lost its place goes to what was found. */
  function put({ page, answer }) {
    const focused = document.activeElement;
    const open = [...part("filters").querySelectorAll("details")].map((details) => details.open);
    for (const name of ["examples", "filters", "results"]) {
      part(name).replaceChildren(...page.querySelector(`[data-vs-part="${name}"]`).childNodes);
    }
    part("filters").querySelectorAll("details").forEach((details, at) => (details.open = open[at] ?? false));
    if (!focused.isConnected) {
      const place = (focused.id && document.getElementById(focused.id)) || found.querySelector("h2") || textField;
      place.focus({ preventScroll: true });
    }
    find("said").textContent = answer.dataset.announcement ?? "";
    root.dispatchEvent(new CustomEvent("visual-search:results", { bubbles: true, detail: { address: answer.dataset.address } }));
  }

  /** Search for what the form says. isNew: the shopper asked for it, and wants to see what was found. */
  function search({ isNew = false, isBack = false } = {}) {
    if (!isAsked()) {
      complain(new Problem("query_empty"));
      return;
    }
    return run(async (signal) => {
      const parts = await ask(signal);
      const { address, token } = parts.answer.dataset;
      if (token && photo) remember(token);
      put(parts);
      push(address, { isBack });
      if (isNew) reveal();
    });
  }

  function push(address, { isBack = false } = {}) {
    if (address !== shown) history[isBack ? "replaceState" : "pushState"]({}, "", address);
    shown = address;
  }

  function remember(token) {
    tokenField.value = token;
    photos.delete(token);
    photos.set(token, photo.blob);
    if (photos.size > KEPT_PHOTOS) photos.delete(photos.keys().next().value);
    store(token, photo.blob);
  }

  /** Bring the results into view where the form fills a small screen. */
  function reveal() {
    if (found.getBoundingClientRect().top > innerHeight * 0.7) found.scrollIntoView({ block: "start" });
  }

  function settle() {
    clearTimeout(settling);
    if (isAsked()) settling = setTimeout(search, SETTLE_MS);
  }

  /** Take files that were chosen, dropped, pasted or carried over from another page. */
  function take(files) {
    say("preparing");
    return run(async (signal) => {
      const file = chosenFile(files);
      await setPhoto(file, { signal });
      input.value = "";
      const parts = await ask(signal);
      remember(parts.answer.dataset.token);
      put(parts);
      push(parts.answer.dataset.address);
      reveal();
    });
  }

  /** Add the next page to what is there. */
  function more(link) {
    return run(async (signal) => {
      say("searching");
      const { page } = partsOf(await request(root.dataset.resultsAddress + link.search, { signal }));
      const hits = [...page.querySelectorAll("[data-vs-hits] > *")];
      find("hits").append(...hits);
      find("pager").replaceChildren(...page.querySelectorAll("[data-vs-more]"));
      say("more", { count: hits.length });
      hits[0]?.querySelector("a")?.focus();
    });
  }

  /** Put into the form what an address says: photo, crop and words. */
  async function restore(address, signal) {
    const query = new URLSearchParams(address.split("?")[1]);
    textField.value = query.get("text") ?? query.get("q") ?? "";
    const token = query.get("token") ?? "";
    const kept = photos.get(token) ?? (stored()?.token === token ? stored().blob : null);
    if (token && kept) await setPhoto(kept, { token, values: readCrop(query.get("crop")), signal });
    else {
      dropPhoto();
      tokenField.value = token;
      cropField.value = query.get("crop") ?? "";
    }
  }

  /** Show what an address says: after going back, or following a link of the widget. */
  function follow(address, { isBack = false } = {}) {
    return run(async (signal) => {
      say("searching");
      if (isBack) await restore(address, signal);
      let parts;
      try {
        parts = partsOf(await request(root.dataset.resultsAddress + new URL(address, location).search, { signal }));
      } catch (problem) {
        if (problem.code !== "photo_expired" || !photo) throw problem;
        put(problem.parts); // the filters of that address
        tokenField.value = "";
        parts = await ask(signal);
        remember(parts.answer.dataset.token);
      }
      put(parts);
      push(parts.answer.dataset.address, { isBack });
    });
  }

  // -- events

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search({ isNew: true });
  });
  form.addEventListener("change", (event) => {
    if (event.target === input) {
      if (input.files.length) take([...input.files]);
    } else if (part("filters").contains(event.target)) settle();
  });
  root.addEventListener("click", (event) => {
    const { vsAction } = event.target.closest("[data-vs-action]")?.dataset ?? {};
    const link = event.target.closest("a");
    const isPlain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
    if (vsAction === "choose") input.click();
    else if (vsAction === "camera") camera.click();
    else if (vsAction === "whole") {
      crop.set([...WHOLE]);
      showCrop();
      find('action="choose"').focus({ preventScroll: true }); // the button itself is off now
      search();
    } else if (vsAction === "remove") remove();
    else if (vsAction === "cancel") cancel();
    else if (link && isPlain && "vsMore" in link.dataset) {
      event.preventDefault();
      more(link);
    } else if (link && isPlain && "vsFollow" in link.dataset) {
      event.preventDefault();
      follow(link.href);
    }
  });

  function cancel() {
    running?.abort();
    find('action="choose"').focus({ preventScroll: true });
    if (!photo) input.focus({ preventScroll: true });
  }

  function remove() {
    dropPhoto();
    forgetStored();
    complain(null);
    if (isAsked()) search();
    else say("removed");
  }

  const camera = Object.assign(document.createElement("input"), { type: "file", accept: "image/*", capture: "environment" });
  camera.addEventListener("change", () => {
    if (camera.files.length) take([...camera.files]);
    camera.value = "";
  });

  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    root.addEventListener(kind, (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      find("photo").classList.toggle("is-target", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") take([...event.dataTransfer.files]);
    });
  }
  document.addEventListener("paste", (event) => {
    const isTyping = event.target.closest?.("input, textarea, select, [contenteditable]");
    const files = [...event.clipboardData.files];
    const isHere = root.contains(event.target);
    if (files.length && (isHere || !isTyping)) {
      event.preventDefault();
      take(files);
    } else if (!isTyping && (isHere || event.target === document.body)) complain(new Problem("text_pasted"));
  });
  addEventListener("popstate", () => {
    if (shown === location.pathname + location.search) return; // only the #part of the address changed
    shown = location.pathname + location.search;
    if (location.pathname === new URL(form.action).pathname) {
      follow(location.href, { isBack: true });
    } else if (location.href === first.address) {
      running?.abort();
      running = null;
      busy(false);
      say("");
      dropPhoto();
      for (const [name, html] of first.parts) part(name).innerHTML = html;
      found.classList.remove("is-open");
    }
  });

  root.classList.add("is-scripted");
  root.querySelectorAll("[data-vs-scripted]").forEach((element) => show(element, true));
  show(find('action="camera"'), matchMedia("(pointer: coarse)").matches);
  start();

  /** Bring back the photo that the address names, or take the one that another page carried over. */
  async function start() {
    const kept = stored();
    const carried = location.hash.slice(1);
    const query = new URLSearchParams(location.search);
    if (location.pathname !== new URL(form.action).pathname) return;
    if (carried.startsWith("photo")) {
      history.replaceState({}, "", location.pathname + location.search);
      if (carried === "photo" && kept) take([kept.blob]);
      else complain(new Problem(carried === "photo" ? "photo_lost" : carried));
    } else if (kept?.token && kept.token === query.get("token")) {
      await setPhoto(kept.blob, { token: kept.token, values: readCrop(query.get("crop")) });
      if (find("error").dataset.code === "photo_expired") search({ isBack: true });
    }
  }

  return { take };
}

/** A button in the shop's header: choose here, search on the search page. */
function enhanceButton(root) {
  const link = root.querySelector("[data-vs-open]");
  const input = Object.assign(document.createElement("input"), { type: "file", accept: "image/*,.heic,.heif" });
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    input.click();
  });
  input.addEventListener("change", async () => {
    const files = [...input.files];
    input.value = "";
    if (pages.length) return pages[0].take(files);
    root.setAttribute("aria-busy", "true");
    let problem = "";
    try {
      const { blob } = await prepare(chosenFile(files), document.createElement("canvas"), root.dataset.maxBytes);
      if (!(await store("", blob))) problem = "photo_lost";
    } catch (error) {
      problem = error.code ?? "photo_damaged";
    }
    location.assign(link.href + (problem ? `#${problem}` : "#photo"));
  });
}

const roots = [...document.querySelectorAll("[data-visual-search]")];
const pages = roots.filter((root) => root.dataset.visualSearch === "page").map(enhance);
roots.filter((root) => root.dataset.visualSearch === "button").forEach(enhanceButton);
