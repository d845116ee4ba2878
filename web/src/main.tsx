import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./App";
import "./style/colours.css";
import "./style/page.css";
import "./style/controls.css";
import "./style/tree.css";
import "./style/panels.css";
import "./style/race.css";

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
