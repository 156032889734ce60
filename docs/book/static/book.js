// A page opened from a disk may not read other pages, so the search lists its results without their text.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// The text on the search button ("Search Ctrl+K") and on a folded cell is its name; the theme's label says another one.
document.addEventListener("DOMContentLoaded", () => {
  const named = ".search-button-field, details.hide > summary";
  for (const element of document.querySelectorAll(named)) element.removeAttribute("aria-label");
});
