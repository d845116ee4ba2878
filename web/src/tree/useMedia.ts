/** Whether a media query holds, as the window changes. */

import { useSyncExternalStore } from "react";

export function useMedia(query: string): boolean {
  const list = matchMedia(query);
  const subscribe = (tell: () => void) => {
    list.addEventListener("change", tell);
    return () => list.removeEventListener("change", tell);
  };
  return useSyncExternalStore(subscribe, () => list.matches);
}
