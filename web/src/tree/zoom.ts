/** Size and place of the tree in its frame: fitted by itself, moved by hand, moved to the keyboard's choice. */

import { select } from "d3-selection";
import { zoom, zoomIdentity, type ZoomBehavior, type ZoomTransform } from "d3-zoom";
import { useEffect, useRef, useState, type RefObject } from "react";
import { BOX_HEIGHT, type Layout } from "./layout";

const SCALES: [number, number] = [0.3, 2];
const LEAST_FITTED = 0.66; // smaller letters cannot be read: a larger tree sticks out and is moved by hand
const MOST_FITTED = 1.25;

interface Size {
  width: number;
  height: number;
}

interface Zoom {
  transform: string;
  zoomBy: (factor: number) => void;
  fit: () => void;
}

export function useZoom(
  svg: RefObject<SVGSVGElement | null>,
  layout: Layout,
  focus: { x: number; y: number } | null,
): Zoom {
  const [transform, setTransform] = useState(zoomIdentity);
  const [frame, setFrame] = useState({ width: 0, height: 0 });
  const behaviour = useRef<ZoomBehavior<SVGSVGElement, unknown>>(null);
  const isByHand = useRef(false);
  const { width, height, middle, boxWidth } = layout;

  useEffect(() => {
    const element = svg.current!;
    const made = zoom<SVGSVGElement, unknown>().scaleExtent(SCALES).filter(mayStart);
    made.on("zoom", ({ transform: next, sourceEvent }: { transform: ZoomTransform; sourceEvent: Event | null }) => {
      if (sourceEvent) isByHand.current = true;
      setTransform(next);
    });
    behaviour.current = made;
    select(element).call(made).on("dblclick.zoom", null);
    const watcher = new ResizeObserver(() => setFrame({ width: element.clientWidth, height: element.clientHeight }));
    watcher.observe(element);
    return () => {
      watcher.disconnect();
      select(element).on(".zoom", null);
    };
  }, [svg]);

  const move = (next: ZoomTransform) => {
    if (svg.current && behaviour.current) behaviour.current.transform(select(svg.current), next);
  };
  const fit = () => {
    isByHand.current = false;
    if (frame.width > 0) move(fitted(frame, layout));
  };
  useEffect(() => {
    if (!isByHand.current) fit();
  }, [frame.width, frame.height, width, height, middle]);
  useEffect(() => {
    if (focus && frame.width > 0) move(withInView(transform, frame, focus, boxWidth));
  }, [focus?.x, focus?.y]);

  const zoomBy = (factor: number) => {
    isByHand.current = true;
    if (svg.current && behaviour.current) behaviour.current.scaleBy(select(svg.current), factor);
  };
  return { transform: transform.toString(), zoomBy, fit };
}

/** The whole tree, centred; of one that is too large the beginning, at the height of the accepted path. */
export function fitted(frame: Size, size: Size & { middle: number }): ZoomTransform {
  const whole = Math.min(frame.width / size.width, frame.height / size.height);
  const scale = Math.min(MOST_FITTED, Math.max(LEAST_FITTED, whole));
  const left = Math.max(0, (frame.width - scale * size.width) / 2);
  const room = frame.height - scale * size.height;
  const top = room >= 0 ? room / 2 : Math.max(room, Math.min(0, frame.height / 2 - scale * size.middle));
  return zoomIdentity.translate(left, top).scale(scale);
}

/** The least move that brings a box into the frame. */
function withInView(now: ZoomTransform, frame: Size, spot: { x: number; y: number }, boxWidth: number): ZoomTransform {
  const [x, y] = now.apply([spot.x, spot.y]);
  const across = outside(x, (boxWidth / 2 + 12) * now.k, frame.width);
  const down = outside(y, (BOX_HEIGHT / 2 + 12) * now.k, frame.height);
  return across || down ? zoomIdentity.translate(now.x - across, now.y - down).scale(now.k) : now;
}

const outside = (at: number, half: number, size: number): number =>
  at < half ? at - half : at > size - half ? at - size + half : 0;

/** A wheel scrolls the page unless Ctrl or Command is held, as on a map; the main button drags. */
function mayStart(event: MouseEvent | WheelEvent | TouchEvent): boolean {
  if (event.type === "wheel") return event.ctrlKey || event.metaKey;
  return !("button" in event) || event.button === 0;
}
