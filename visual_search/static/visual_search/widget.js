/**
 * Search by photo on a shop's page: the behaviour of {% visual_search_widget %} with JavaScript.
 *
 * The page's address holds the whole state of a search. This script fetches the results alone for the same parameters and
 * inserts them into the page. It turns a photo upright, scales it down, sends it once and then refers to it by a token. The
 * photo stays in this tab, to be cropped after coming back, or sent again when its token has expired.
 * Elements are found by data-vs-… attributes. Without inline style or script, blob: or data: URLs, default-src 'self' is enough.
 */

const LONGEST_PX = 1024; // of the sent photo; encoders read 224 to 512
const PHOTO_BYTES = 300_000; // the target size of the sent photo
const QUALITIES = [0.85, 0.7, 0.55, 0.4];
const CROP_MIN = 0.08; // fraction of a side; smaller parts show nothing
const CROP_STEP = 0.02;
const SETTLE_MS = 400; // wait after the last change of crop or filters
const RETRIES = 4; // of a request that may succeed later
const RETRY_SECONDS = 5; // without a Retry-After header
const TIMEOUT_MS = 90_000; // of one request; a photo takes a while on a slow connection
const KEPT_PHOTOS = 5; // remembered by token, for going back
const STORAGE_KEY = "visual-search-photo";
const WHOLE = [0, 0, 1, 1];

class SearchError extends Error {
  constructor(code, detail = "", retryAfter = 0) {
    super(detail || code);
    Object.assign(this, { code, detail, retryAfter });
  }
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const show = (element, isShown) => element && (element.hidden = !isShown);

// ---- photos

/** Return the chosen file; throw a SearchError, before anything is sent, for several files or one that is not a photo. */
function chosenFile(files) {
  if (files.length > 1) throw new SearchError("photo_not_single");
  const [file] = files;
  if (!file.size) throw new SearchError("photo_empty");
  if (file.type && !file.type.startsWith("image/")) throw new SearchError("photo_unsupported");
  return file;
}

/** Draw a file upright and scaled down. Return it as a JPEG, or the file itself if this browser can't read it (mostly HEIC). */
async function prepare(file, canvas, maxBytes, signal) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    if (file.size > maxBytes) throw new SearchError("photo_too_large");
    return { blob: file, isShown: false };
  } finally {
    signal?.throwIfAborted(); // a newer photo uses the canvas
  }
  const scale = Math.min(1, LONGEST_PX / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // the background of transparent photos, as on the server
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  let blob;
  for (const quality of QUALITIES) {
    blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", quality));
    signal?.throwIfAborted();
    if (blob && blob.size <= PHOTO_BYTES) break;
  }
  return blob ? { blob, isShown: true } : { blob: file, isShown: true };
}

/** Keep the photo in this tab for the next page. Return whether that worked: storage may be full or forbidden. */
function storePhoto(token, blob) {
  const reader = new FileReader();
  return new Promise((resolve) => {
    reader.onload = () => {
      try {
        sessionStorage.setItem(STORAGE_KEY, JSON.stringify({ token, type: blob.type, data: reader.result.split(",")[1] }));
        resolve(true);
      } catch {
        resolve(false);
      }
    };
    reader.onerror = () => resolve(false);
    reader.readAsDataURL(blob);
  });
}

function readStoredPhoto() {
  try {
    const { token, type, data } = JSON.parse(sessionStorage.getItem(STORAGE_KEY));
    return { token, blob: new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], { type }) };
  } catch {
    return null;
  }
}

function clearStoredPhoto() {
  try {
    sessionStorage.removeItem(STORAGE_KEY);
  } catch {} // forbidden storage is empty anyway
}

// ---- requests

/** Send a request and report the upload's progress, 0 to 1. Uses XMLHttpRequest because fetch does not report it. */
function request(address, { body, signal, onprogress } = {}) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open(body ? "POST" : "GET", address);
    xhr.timeout = TIMEOUT_MS;
    xhr.onload = () => resolve(xhr);
    xhr.onerror = xhr.ontimeout = () => reject(new SearchError("network"));
    xhr.onabort = () => reject(new DOMException("", "AbortError"));
    if (onprogress) xhr.upload.onprogress = (event) => event.lengthComputable && onprogress(event.loaded / event.total);
    signal.addEventListener("abort", () => xhr.abort());
    xhr.send(body);
  });
}

/** Return the parts of a response, or throw its error. Responses of proxies have only a status. */
function parseResponse(xhr) {
  const page = new DOMParser().parseFromString(xhr.responseText, "text/html");
  const error = page.querySelector("[data-vs-error]");
  const answer = page.querySelector("[data-vs-answer]");
  // A 429 is not retried: the wait, which its message names, is too long for an open page.
  const retryAfter = [502, 503, 504].includes(xhr.status) ? Number(xhr.getResponseHeader("Retry-After")) || RETRY_SECONDS : 0;
  if (error) throw Object.assign(new SearchError(error.dataset.code, error.textContent, retryAfter), { parts: { page, answer } });
  if (xhr.status === 413) throw new SearchError("photo_too_large");
  if (xhr.status === 403) throw new SearchError("page_expired");
  if (xhr.status !== 200 || !answer) throw new SearchError("search_unavailable", "", retryAfter);
  return { page, answer };
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("", "AbortError"));
    });
  });
}

// ---- the crop

/** Parse the crop of an address or a field; return the whole photo if it is invalid. */
function readCrop(text) {
  const [left, top, right, bottom, ...more] = (text || "").split(",").map(Number);
  const isInside = left >= 0 && top >= 0 && right <= 1 && bottom <= 1;
  const isCrop = !more.length && isInside && Math.min(right - left, bottom - top) >= CROP_MIN - 0.001;
  return isCrop ? [left, top, right, bottom] : [...WHOLE];
}

/** Let the shopper mark a part of the photo. `onchange(crop)`: left, top, right, bottom as fractions of its sides. */
function createCropper(box, percentWords, onchange) {
  const frame = box.parentElement;
  const edges = [...box.querySelectorAll("[data-vs-edge]")];
  let crop = [...WHOLE];

  function set(values, notifies = true) {
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
    if (notifies) onchange(crop);
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
    const isDrawing = !sides && (isOutside || isWhole()); // outside the crop, or without one, a new one is drawn
    if (vsEdge) event.target.focus({ preventScroll: true });
    const move = (moved) => {
      const [x, y] = at(moved);
      if (sides) {
        set(sides.reduce((values, side) => withSide(values, side, values[side] + (side % 2 ? y - start[1] : x - start[0])), from), false);
      } else if (isDrawing) {
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
      return isWhole() ? "" : crop.map((edge) => edge.toFixed(3)).join(",");
    },
  };
}

// ---- the widget

/** Set up the widget. Returns {searchByFiles}, for buttons on the same page. */
function enhanceWidget(root) {
  const part = (name) => root.querySelector(`[data-vs-part="${name}"]`);
  const find = (name) => root.querySelector(`[data-vs-${name}]`);
  const form = find("form");
  const results = part("results");
  const canvas = find("canvas");
  const input = find("file");
  const { token: tokenField, crop: cropField, text: textField } = form.elements;
  const sentences = find("sentences").content;
  const sentence = (code, values = {}) =>
    Object.entries(values).reduce(
      (text, [name, value]) => text.replace(`{${name}}`, value),
      (sentences.querySelector(`[data-code="${code}"]`) ?? sentences.querySelector('[data-code="search_unavailable"]')).textContent,
    );
  const photos = new Map(); // token → blob, of this visit
  const initial = { address: location.href, parts: ["examples", "filters", "results"].map((name) => [name, part(name).innerHTML]) };
  let photo = null; // {blob, isShown}: the photo to search with
  let running = null; // AbortController of the running task
  let searchTimer = 0;
  let shownAddress = location.pathname + location.search;

  const crop = createCropper(find("crop"), (percent) => sentence("cropped", { percent }), () => {
    showCrop();
    searchSoon();
  });

  // -- status and errors

  function showStatus(code, values) {
    find("said").textContent = code ? sentence(code, values) : "";
  }

  function showError(error) {
    const box = find("error");
    box.textContent = error ? error.detail || sentence(error.code) : "";
    if (error) box.dataset.code = error.code;
    else delete box.dataset.code;
  }

  function setBusy(isBusy, share = null) {
    results.classList.toggle("is-busy", isBusy);
    results.setAttribute("aria-busy", isBusy);
    show(find("wait"), isBusy);
    if (share === null) find("progress").removeAttribute("value");
    else find("progress").value = share * 100;
  }

  // -- the query

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

  function clearPhoto() {
    photo = null;
    tokenField.value = "";
    input.value = "";
    crop.set([...WHOLE]);
    showPhoto();
  }

  /** Return the form's values as query string parameters. */
  function parameters() {
    const data = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      const isSent = typeof value === "string" && value.trim() && name !== "csrfmiddlewaretoken";
      if (isSent && !(name === "crop" && !tokenField.value)) data.append(name, value);
    }
    return data;
  }

  const hasQuery = () => Boolean(photo || tokenField.value || textField.value.trim() || form.elements.like);

  // -- searching

  /** Run one task at a time: a new one aborts the running one. Errors are shown, not thrown. */
  async function run(task) {
    clearTimeout(searchTimer);
    running?.abort();
    const controller = (running = new AbortController());
    showError(null);
    results.classList.add("is-open");
    setBusy(true);
    try {
      await task(controller.signal);
    } catch (error) {
      if (running !== controller) return; // a newer task runs
      if (error.name === "AbortError") showStatus("cancelled");
      else {
        showStatus("");
        showError(error instanceof SearchError ? error : new SearchError("search_unavailable"));
        if (!(error instanceof SearchError)) console.error(error);
      }
    }
    if (running === controller) {
      running = null;
      setBusy(false);
    }
  }

  /** Return the response to the form; wait and retry if the server asks for it. */
  async function fetchWithRetries(signal) {
    for (let attempt = 0; ; attempt++) {
      try {
        return parseResponse(await (photo && !tokenField.value ? sendPhoto(signal) : fetchResults(signal)));
      } catch (error) {
        if (!(error instanceof SearchError)) throw error; // cancelled
        if (error.code === "photo_expired" && photo && tokenField.value) {
          tokenField.value = ""; // the photo is still here: send it again
          continue;
        }
        if (error.code.startsWith("photo_")) clearPhoto();
        if (!error.retryAfter || attempt >= RETRIES) throw error;
        await countDown(error.retryAfter, signal);
      }
    }
  }

  async function countDown(seconds, signal) {
    for (let left = seconds; left > 0; left--) {
      showStatus("waiting", { seconds: left });
      await sleep(1, signal);
    }
  }

  function fetchResults(signal) {
    showStatus("searching");
    return request(`${root.dataset.resultsAddress}?${parameters()}`, { signal });
  }

  function sendPhoto(signal) {
    showStatus("sending");
    const body = new FormData(form);
    body.set("photo", photo.blob, "photo");
    const onprogress = (share) => {
      setBusy(true, share < 1 ? share : null);
      if (share === 1) showStatus("searching");
    };
    return request(root.dataset.resultsAddress, { body, signal, onprogress });
  }

  /** Insert a response into the page. Focus stays on the same control if it still exists, else it moves to the results. */
  function insertParts({ page, answer }) {
    const focused = document.activeElement;
    const open = [...part("filters").querySelectorAll("details")].map((details) => details.open);
    for (const name of ["examples", "filters", "results"]) {
      part(name).replaceChildren(...page.querySelector(`[data-vs-part="${name}"]`).childNodes);
    }
    part("filters").querySelectorAll("details").forEach((details, index) => (details.open = open[index] ?? false));
    if (!focused.isConnected) {
      const target = (focused.id && document.getElementById(focused.id)) || results.querySelector("h2") || textField;
      target.focus({ preventScroll: true });
    }
    find("said").textContent = answer.dataset.announcement ?? "";
    root.dispatchEvent(new CustomEvent("visual-search:results", { bubbles: true, detail: { address: answer.dataset.address } }));
  }

  /** Search with the form's values. isNew: the shopper started the search, so scroll to the results. */
  function search({ isNew = false, isBack = false } = {}) {
    if (!hasQuery()) {
      showError(new SearchError("query_empty"));
      return;
    }
    return run(async (signal) => {
      const parts = await fetchWithRetries(signal);
      const { address, token } = parts.answer.dataset;
      if (token && photo) rememberPhoto(token);
      insertParts(parts);
      updateHistory(address, { isBack });
      if (isNew) scrollToResults();
    });
  }

  function updateHistory(address, { isBack = false } = {}) {
    if (address !== shownAddress) history[isBack ? "replaceState" : "pushState"]({}, "", address);
    shownAddress = address;
  }

  function rememberPhoto(token) {
    tokenField.value = token;
    photos.delete(token);
    photos.set(token, photo.blob);
    if (photos.size > KEPT_PHOTOS) photos.delete(photos.keys().next().value);
    storePhoto(token, photo.blob);
  }

  /** Scroll to the results if the form fills a small screen. */
  function scrollToResults() {
    if (results.getBoundingClientRect().top > innerHeight * 0.7) results.scrollIntoView({ block: "start" });
  }

  function searchSoon() {
    clearTimeout(searchTimer);
    if (hasQuery()) searchTimer = setTimeout(search, SETTLE_MS);
  }

  /** Search by the files that were chosen, dropped, pasted or carried over from another page. */
  function searchByFiles(files) {
    showStatus("preparing");
    return run(async (signal) => {
      const file = chosenFile(files);
      await setPhoto(file, { signal });
      input.value = "";
      const parts = await fetchWithRetries(signal);
      rememberPhoto(parts.answer.dataset.token);
      insertParts(parts);
      updateHistory(parts.answer.dataset.address);
      scrollToResults();
    });
  }

  /** Append the next page of results. */
  function showMore(link) {
    return run(async (signal) => {
      showStatus("searching");
      const { page } = parseResponse(await request(root.dataset.resultsAddress + link.search, { signal }));
      const hits = [...page.querySelectorAll("[data-vs-hits] > *")];
      find("hits").append(...hits);
      find("pager").replaceChildren(...page.querySelectorAll("[data-vs-more]"));
      showStatus("more", { count: hits.length });
      hits[0]?.querySelector("a")?.focus();
    });
  }

  /** Restore the form from an address: photo, crop and words. */
  async function restore(address, signal) {
    const query = new URLSearchParams(address.split("?")[1]);
    textField.value = query.get("text") ?? query.get("q") ?? "";
    const token = query.get("token") ?? "";
    const kept = photos.get(token) ?? (readStoredPhoto()?.token === token ? readStoredPhoto().blob : null);
    if (token && kept) await setPhoto(kept, { token, values: readCrop(query.get("crop")), signal });
    else {
      clearPhoto();
      tokenField.value = token;
      cropField.value = query.get("crop") ?? "";
    }
  }

  /** Show the search of an address, after going back or following a link of the widget. */
  function openAddress(address, { isBack = false } = {}) {
    return run(async (signal) => {
      showStatus("searching");
      if (isBack) await restore(address, signal);
      let parts;
      try {
        parts = parseResponse(await request(root.dataset.resultsAddress + new URL(address, location).search, { signal }));
      } catch (error) {
        if (error.code !== "photo_expired" || !photo) throw error;
        insertParts(error.parts); // the filters of that address
        tokenField.value = "";
        parts = await fetchWithRetries(signal);
        rememberPhoto(parts.answer.dataset.token);
      }
      insertParts(parts);
      updateHistory(parts.answer.dataset.address, { isBack });
    });
  }

  // -- events

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search({ isNew: true });
  });
  form.addEventListener("change", (event) => {
    if (event.target === input) {
      if (input.files.length) searchByFiles([...input.files]);
    } else if (part("filters").contains(event.target)) searchSoon();
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
      find('action="choose"').focus({ preventScroll: true }); // this button is disabled now
      search();
    } else if (vsAction === "remove") remove();
    else if (vsAction === "cancel") cancel();
    else if (link && isPlain && "vsMore" in link.dataset) {
      event.preventDefault();
      showMore(link);
    } else if (link && isPlain && "vsFollow" in link.dataset) {
      event.preventDefault();
      openAddress(link.href);
    }
  });

  function cancel() {
    running?.abort();
    find('action="choose"').focus({ preventScroll: true });
    if (!photo) input.focus({ preventScroll: true });
  }

  function remove() {
    clearPhoto();
    clearStoredPhoto();
    showError(null);
    if (hasQuery()) search();
    else showStatus("removed");
  }

  const camera = Object.assign(document.createElement("input"), { type: "file", accept: "image/*", capture: "environment" });
  camera.addEventListener("change", () => {
    if (camera.files.length) searchByFiles([...camera.files]);
    camera.value = "";
  });

  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    root.addEventListener(kind, (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      find("photo").classList.toggle("is-target", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") searchByFiles([...event.dataTransfer.files]);
    });
  }
  document.addEventListener("paste", (event) => {
    const isTyping = event.target.closest?.("input, textarea, select, [contenteditable]");
    const files = [...event.clipboardData.files];
    const isHere = root.contains(event.target);
    if (files.length && (isHere || !isTyping)) {
      event.preventDefault();
      searchByFiles(files);
    } else if (!isTyping && (isHere || event.target === document.body)) showError(new SearchError("text_pasted"));
  });
  addEventListener("popstate", () => {
    if (shownAddress === location.pathname + location.search) return; // only the #part of the address changed
    shownAddress = location.pathname + location.search;
    if (location.pathname === new URL(form.action).pathname) {
      openAddress(location.href, { isBack: true });
    } else if (location.href === initial.address) {
      running?.abort();
      running = null;
      setBusy(false);
      showStatus("");
      clearPhoto();
      for (const [name, html] of initial.parts) part(name).innerHTML = html;
      results.classList.remove("is-open");
    }
  });

  root.classList.add("is-scripted");
  root.querySelectorAll("[data-vs-scripted]").forEach((element) => show(element, true));
  show(find('action="camera"'), matchMedia("(pointer: coarse)").matches);
  start();

  /** Restore the photo of the address, or search by the photo that another page carried over. */
  async function start() {
    const kept = readStoredPhoto();
    const carried = location.hash.slice(1);
    const query = new URLSearchParams(location.search);
    if (location.pathname !== new URL(form.action).pathname) return;
    if (carried.startsWith("photo")) {
      history.replaceState({}, "", location.pathname + location.search);
      if (carried === "photo" && kept) searchByFiles([kept.blob]);
      else showError(new SearchError(carried === "photo" ? "photo_lost" : carried));
    } else if (kept?.token && kept.token === query.get("token")) {
      await setPhoto(kept.blob, { token: kept.token, values: readCrop(query.get("crop")) });
      if (find("error").dataset.code === "photo_expired") search({ isBack: true });
    }
  }

  return { searchByFiles };
}

/** Set up a button in the shop's header: choose the photo here, search on the search page. */
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
    if (widgets.length) return widgets[0].searchByFiles(files);
    root.setAttribute("aria-busy", "true");
    let errorCode = "";
    try {
      const { blob } = await prepare(chosenFile(files), document.createElement("canvas"), root.dataset.maxBytes);
      if (!(await storePhoto("", blob))) errorCode = "photo_lost";
    } catch (error) {
      errorCode = error.code ?? "photo_damaged";
    }
    location.assign(link.href + (errorCode ? `#${errorCode}` : "#photo"));
  });
}

const roots = [...document.querySelectorAll("[data-visual-search]")];
const widgets = roots.filter((root) => root.dataset.visualSearch === "page").map(enhanceWidget);
roots.filter((root) => root.dataset.visualSearch === "button").forEach(enhanceButton);
