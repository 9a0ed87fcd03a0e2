"use strict";
// The page of crops: keys for the next and the previous row, and for brightening.

const bright = document.getElementById("bright");
const rows = [...document.querySelectorAll(".item")];
let current = -1;

function brighten() {
  document.body.classList.toggle("bright", bright.checked);
}

function go(step) {
  current = Math.min(Math.max(current + step, 0), rows.length - 1);
  if (rows[current]) {
    rows[current].scrollIntoView({ block: "start" });
    rows[current].focus({ preventScroll: true });
  }
}

bright.addEventListener("change", brighten);
bright.form.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { n: 1, ArrowDown: 1, p: -1, ArrowUp: -1 }[event.key];
  if (step) {
    event.preventDefault();
    go(step);
  } else if (event.key === "b") {
    bright.checked = !bright.checked;
    brighten();
  }
});
brighten();
