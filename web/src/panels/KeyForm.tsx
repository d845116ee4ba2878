/** Asks for the API key when the server refused the connection. */

import { useState, type FormEvent } from "react";

export function KeyForm({ onKey }: { onKey: (key: string) => void }) {
  const [key, setKey] = useState("");
  const submit = (event: FormEvent) => {
    event.preventDefault();
    onKey(key);
  };
  return (
    <form className="key panel" onSubmit={submit}>
      <label className="field grow">
        <span>API key (kept in this tab until it is closed)</span>
        <input
          type="password"
          autoComplete="off"
          required
          value={key}
          onChange={(event) => setKey(event.target.value)}
        />
      </label>
      <button type="submit" className="primary">
        Connect
      </button>
    </form>
  );
}
