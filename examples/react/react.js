// React's global as an ES module, so that the page needs no build step. With a bundler, leave this file out.
export const { createElement, useEffect, useRef, useState } = globalThis.React;
