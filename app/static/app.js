// Turning a head, comparing it before and after, starting downloads. Pictures come from /headlift/view, one at a time:
// while the head moves only the latest wish is asked for, as a draft; at rest it is asked for in full.
"use strict";

window.headlift = (() => {
  const STEP = 5 * Math.PI / 180, SPEED = 0.008, MOST_PITCH = 60 * Math.PI / 180, REST = 140;
  let stage = null, head = "", yaw = 0.35, pitch = 0.1, amounts = {}, comparing = false;
  let wish = null, busy = false, resting = 0, dragged = null;

  const address = (draft, moved) => {
    const query = new URLSearchParams({ yaw: yaw.toFixed(4), pitch: pitch.toFixed(4), draft: draft ? "1" : "0" });
    for (const [name, amount] of Object.entries(moved)) query.set(name, amount);
    return `/headlift/view/${head}?${query}`;
  };

  const put = async (figure, url, draft) => {
    const of = head, answer = await fetch(url), body = await (answer.ok ? answer.blob() : answer.text());
    if (of !== head) return;  // another one stands here by now
    if (!answer.ok) throw new Error(body);
    const image = figure.querySelector("img"), old = image.src;
    image.src = URL.createObjectURL(body);
    await image.decode().catch(() => {});
    if (old.startsWith("blob:")) URL.revokeObjectURL(old);
    image.dataset.draft = draft ? "1" : "0";
    image.dataset.seen = `${yaw.toFixed(2)} ${pitch.toFixed(2)}`;
    image.dataset.frames = Number(image.dataset.frames || 0) + 1;
  };

  const pump = async () => {
    if (busy) return;
    busy = true;
    while (wish && stage) {
      const { draft } = wish, here = stage, began = performance.now();
      wish = null;
      try {
        const after = here.querySelector(".hl-after"), before = here.querySelector(".hl-before");
        await put(after, address(draft, amounts), draft);
        if (comparing) await put(before, address(draft, {}), draft);
        here.dataset.took = Math.round(performance.now() - began);
        here.classList.remove("hl-failed");
      } catch (error) {
        here.classList.add("hl-failed");
        here.dataset.error = error.message;
        say(error.message);
      }
    }
    busy = false;
    tellDrift();
  };

  // The identity drift beside the sliders: asked for once the head is at rest, one question at a time.
  let asked = null;
  const tellDrift = async () => {
    const box = document.querySelector(".hl-drift");
    if (!box || !stage || dragged || asked || stage.querySelector(".hl-after img").dataset.draft !== "0") return;
    const query = new URLSearchParams(amounts), wanted = `${head}?${query}`;
    if (box.dataset.of === wanted) return;
    const tell = (value, number, note) => {
      box.dataset.of = wanted;
      box.querySelector("meter").value = value;
      box.querySelector("output").textContent = number;
      box.querySelector("p").textContent = note;
    };
    if (!Object.keys(amounts).length) {
      tell(0, "0.00", "Nothing has been changed.");
      return;
    }
    asked = wanted;
    delete box.dataset.of;
    box.querySelector("p").textContent = "Comparing the head before and after\u2026";
    try {
      const answer = await fetch(`/headlift/drift/${head}?${query}`);
      if (!answer.ok) throw new Error(await answer.text());
      const { value, stand_in } = await answer.json();
      tell(value, value.toFixed(2), "0 is the same head, 1 another one"
        + (stand_in ? "; by features of its pictures, as no face-recognition network is here." : "; by face recognition."));
    } catch (error) {
      tell(0, "\u2013", error.message);
    }
    asked = null;
    tellDrift();
  };

  const show = draft => {
    if (!stage) return;
    wish = { draft };
    pump();
    clearTimeout(resting);
    if (draft) resting = setTimeout(() => { if (!dragged) show(false); }, REST);
  };

  const say = text => {
    const line = document.querySelector(".hl-angle");
    if (line) line.textContent = text;
  };

  const sayAngle = () => {
    const side = Math.round(yaw * 180 / Math.PI), up = Math.round(pitch * 180 / Math.PI);
    const turned = ((side % 360) + 540) % 360 - 180;
    const first = turned ? `${Math.abs(turned)}\u00b0 from the ${turned > 0 ? "head's left" : "head's right"}` : "from the front";
    say(up ? `${first}, ${Math.abs(up)}\u00b0 from ${up > 0 ? "above" : "below"}` : first);
  };

  const turn = (side, up) => {
    yaw += side;
    pitch = Math.max(-MOST_PITCH, Math.min(MOST_PITCH, pitch + up));
    show(true);
  };

  // Gradio changes a stage in place when it shows another head, and makes a new one when it was hidden meanwhile.
  const heard = new WeakSet();
  const attach = found => {
    stage = found;
    if (found.dataset.head !== head) { head = found.dataset.head; amounts = {}; yaw = 0.35; pitch = 0.1; }
    if (!heard.has(found)) listen(found);
    compare(comparing);
    sayAngle();
    reveal(document.querySelector(".hl-title") || found);
  };

  const listen = found => {
    heard.add(found);
    found.addEventListener("pointerdown", event => {
      if (event.button) return;
      dragged = { x: event.clientX, y: event.clientY };
      found.setPointerCapture(event.pointerId);
      found.classList.add("hl-dragging");
    });
    found.addEventListener("pointermove", event => {
      if (!dragged) return;
      turn((dragged.x - event.clientX) * SPEED, (event.clientY - dragged.y) * SPEED);
      dragged = { x: event.clientX, y: event.clientY };
    });
    const drop = () => {
      if (!dragged) return;
      dragged = null;
      found.classList.remove("hl-dragging");
      sayAngle();
      show(false);
    };
    for (const ending of ["pointerup", "pointercancel", "lostpointercapture"]) found.addEventListener(ending, drop);
    found.addEventListener("keydown", event => {
      const way = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] }[event.key];
      if (way) turn(...way);
      else if (event.key === "Home") { yaw = pitch = 0; show(false); }
      else return;
      event.preventDefault();
      sayAngle();
    });
    found.addEventListener("dragstart", event => event.preventDefault());
  };

  const compare = on => {
    comparing = on;
    if (!stage) return;
    stage.classList.toggle("hl-comparing", on);
    stage.querySelector(".hl-before").hidden = !on;
    show(false);
  };

  const edit = (names, values) => {
    amounts = Object.fromEntries(names.map((name, i) => [name, values[i]]).filter(([, value]) => Math.abs(value) > 1e-3));
    show(true);
  };

  // What has just appeared is brought into view when it is out of it, as on a phone.
  let running = false;
  const reveal = found => {
    const top = found.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight * 0.6) found.scrollIntoView({ block: "start", behavior: "smooth" });
  };

  let loading = false;
  const look = () => {
    const run = document.querySelector(".hl-run");
    if (run && !running) reveal(run);
    running = Boolean(run);
    const found = document.querySelector(".hl-stage");
    if (found && (found !== stage || found.dataset.head !== head)) attach(found);
    if (!found) stage = null;
    if (!loading && document.querySelector("model-viewer")) {
      loading = true;
      document.head.append(Object.assign(document.createElement("script"), {
        type: "module", src: "/headlift/static/model-viewer.js",
      }));
    }
    const link = document.querySelector(".hl-download[data-auto]");
    if (link) { link.removeAttribute("data-auto"); link.click(); }
    name("#hl-drop input[type=file]", "Choose a photo of a face");
  };

  // Labels for screen readers where Gradio gives none.
  const name = (selector, label) => {
    for (const found of document.querySelectorAll(selector))
      if (!found.hasAttribute("aria-label")) found.setAttribute("aria-label", label);
  };

  const begin = () => {
    document.documentElement.lang = "en";
    new MutationObserver(look).observe(document.body, { childList: true, subtree: true, attributes: true,
      attributeFilter: ["data-head", "data-auto"] });
    look();
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();

  return { edit, compare };
})();
