"use strict";
const cards = [...document.querySelectorAll("article")];
const box = document.getElementById("filter");
const large = document.getElementById("large");

function filter() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let left = 0;
  for (const card of cards) {
    card.hidden = !words.every((word) => card.dataset.words.includes(word));
    left += !card.hidden;
  }
  document.getElementById("count").textContent = `${left} of ${cards.length}`;
  document.getElementById("nothing").hidden = left > 0;
}

function enlarge(picture) {
  const image = picture.querySelector("img");
  large.querySelector("img").src = image.src;
  large.querySelector("p").textContent = image.alt;
  large.showModal();
}

box.addEventListener("input", filter);
document.addEventListener("click", (event) => {
  const picture = event.target.closest(".picture");
  if (picture) enlarge(picture);
  if (event.target === large) large.close();
});
filter();
