/** The prompt, how to decode it, and the button that starts and stops. */

import { useState, type FormEvent, type KeyboardEvent } from "react";
import type { Generate, Ready } from "../protocol/messages";

interface Props {
  ready: Ready | null;
  isRunning: boolean;
  onGenerate: (request: Omit<Generate, "type" | "id">) => void;
  onCancel: () => void;
}

const QUESTION = "Explain in two sentences why the sky is blue.";
const OPENING = "def fibonacci(n):\n"; // for a base that only goes on with a text

export function PromptForm({ ready, isRunning, onGenerate, onCancel }: Props) {
  const [written, setPrompt] = useState<string | null>(null);
  const [isChat, setChat] = useState(true);
  const [maxTokens, setMaxTokens] = useState("128");
  const [temperature, setTemperature] = useState("0");
  const [seed, setSeed] = useState("0");
  const [isCompared, setCompared] = useState(false);
  const canCompare = ready !== null && ready.drafter !== "none";
  const canChat = ready?.chat ?? false;
  const prompt = written ?? (ready?.chat === false ? OPENING : QUESTION);

  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (!ready || isRunning || !prompt) return;
    const sampling = {
      max_tokens: Number(maxTokens),
      temperature: Number(temperature),
      seed: seed === "" ? null : Number(seed),
    };
    const asked = canChat && isChat ? { messages: [{ role: "user", content: prompt }] } : { prompt };
    onGenerate({ ...asked, sampling, compare: canCompare && isCompared });
  };
  const onKeyDown = (event: KeyboardEvent<HTMLTextAreaElement>) => {
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    event.currentTarget.form?.requestSubmit(); // which checks the numbers, as the button does
  };

  return (
    <form className="prompt panel" onSubmit={submit}>
      <div className="grow">
        <label htmlFor="prompt">Prompt</label>
        <textarea
          id="prompt"
          rows={2}
          value={prompt}
          onChange={(event) => setPrompt(event.target.value)}
          onKeyDown={onKeyDown}
        />
      </div>
      <div className="options">
        {canChat && (
          <label className="field">
            <span>Mode</span>
            <select value={isChat ? "chat" : "text"} onChange={(event) => setChat(event.target.value === "chat")}>
              <option value="chat">answer</option>
              <option value="text">continue</option>
            </select>
          </label>
        )}
        <NumberField
          label="Tokens"
          value={maxTokens}
          min={1}
          max={ready?.max_model_len}
          step={1}
          onChange={setMaxTokens}
        />
        <NumberField label="Temperature" value={temperature} min={0} max={2} step={0.1} onChange={setTemperature} />
        <NumberField
          label="Seed"
          value={seed}
          min={0}
          max={Number.MAX_SAFE_INTEGER}
          step={1}
          isOptional
          onChange={setSeed}
        />
        <label className="check">
          <input
            type="checkbox"
            checked={isCompared && canCompare}
            disabled={!canCompare}
            onChange={(event) => setCompared(event.target.checked)}
          />
          <span>Compare with plain decoding</span>
        </label>
        {isRunning ? (
          <button key="cancel" type="button" className="primary stop" onClick={onCancel}>
            Cancel
          </button>
        ) : (
          <button key="generate" type="submit" className="primary" disabled={!ready || !prompt}>
            Generate
          </button>
        )}
      </div>
    </form>
  );
}

interface NumberProps {
  label: string;
  value: string;
  min: number;
  max: number | undefined;
  step: number;
  isOptional?: boolean;
  onChange: (text: string) => void;
}

function NumberField({ label, value, min, max, step, isOptional, onChange }: NumberProps) {
  return (
    <label className="field">
      <span>{label}</span>
      <input
        type="number"
        inputMode={step < 1 ? "decimal" : "numeric"}
        required={!isOptional}
        placeholder={isOptional ? "any" : undefined}
        {...{ value, min, max, step }}
        onChange={(event) => onChange(event.target.value)}
      />
    </label>
  );
}
