// SPDX-License-Identifier: Apache-2.0
// The theme that somebody has chosen, before anything is shown: else each page begins
// with a flash of the other.

try { document.documentElement.dataset.theme = localStorage.getItem("federation-theme") ?? "auto"; } catch { /* none is stored */ }
