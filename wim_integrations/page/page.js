// Links and cells lead to a passage, a chunk or a card: it is scrolled into view, outlined and focused.
(() => {
  let origin = null;
  const shown = "wim-shown";

  const show = (name) => {
    document.querySelectorAll(`.${shown}`).forEach((each) => each.classList.remove(shown));
    let found = [...document.querySelectorAll(`[data-passage~="${CSS.escape(name)}"]`)];
    if (!found.length) found = [document.getElementById(name)].filter(Boolean);
    if (!found.length) return;
    found.forEach((each) => each.classList.add(shown));
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    found[0].scrollIntoView({ block: "center", behavior: still ? "auto" : "smooth" });
    found[0].focus({ preventScroll: true });
  };

  const back = () => {
    document.getElementById("wim-back").hidden = true;
    const place = origin?.isConnected ? origin : document.getElementById("answer");
    place.scrollIntoView({ block: "center" });
    place.focus({ preventScroll: true });
  };

  document.addEventListener("click", (event) => {
    if (event.target.closest("#wim-back")) return back();
    const link = event.target.closest("[data-show]");
    if (!link) return;
    event.preventDefault();
    if (link.matches(".wim-number")) {
      origin = link;
      document.getElementById("wim-back").hidden = false;
    }
    show(link.dataset.show);
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.getElementById("wim-back").hidden) return back();
    const cell = event.target.closest?.(".wim-cell");
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!cell || !step) return;
    const next = step > 0 ? cell.nextElementSibling : cell.previousElementSibling;
    if (!next) return;
    event.preventDefault();
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
})();
