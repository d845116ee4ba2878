import react from "@vitejs/plugin-react";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

// A page opened from a file may not load modules: browsers refuse them there. The bundle is one classic script instead.
const classicScript: Plugin = {
  name: "classic-script",
  enforce: "post",
  transformIndexHtml: (html) =>
    html.replace('<script type="module" crossorigin', "<script defer").replace(" crossorigin href", " href"),
};

// No hash in the names: the built files are committed, and the server sends them with an ETag. No source map: the source is beside.
export default defineConfig({
  base: "./",
  plugins: [react(), classicScript],
  build: {
    outDir: "../src/euryale/server/page",
    emptyOutDir: true,
    target: "es2022",
    sourcemap: false,
    modulePreload: false,
    cssCodeSplit: false, // a file of its own: styles inside the script would break the Content-Security-Policy
    reportCompressedSize: false,
    license: { fileName: "LICENSES.txt" },
    rollupOptions: {
      output: { format: "iife", entryFileNames: "page.js", assetFileNames: "page[extname]" },
    },
  },
  test: { environment: "node", pool: "threads", maxWorkers: 1 },
});
