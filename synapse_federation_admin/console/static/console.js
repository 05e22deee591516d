// SPDX-License-Identifier: Apache-2.0
// What a page does by itself: nothing yet that it cannot do without.
