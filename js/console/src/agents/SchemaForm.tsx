/** A form made of a tool's JSON Schema. */
import { useId } from "preact/hooks";
import type { Draft, Field, Problem } from "../lib/schema";

export function SchemaForm({
  fields,
  draft,
  problems,
  onChange,
  at = "",
}: {
  fields: Field[];
  draft: Draft;
  problems: Problem[];
  onChange: (draft: Draft) => void;
  at?: string;
}) {
  return (
    <>
      {fields.map((field) => {
        const path = at ? `${at}.${field.name}` : field.name;
        const change = (value: string | boolean | Draft) =>
          onChange({ ...draft, [field.name]: value });
        if (field.control.kind === "object") {
          return (
            <fieldset key={path} class="group">
              <legend>{field.label}</legend>
              {field.description && <p class="muted small">{field.description}</p>}
              <SchemaForm
                fields={field.control.fields}
                draft={(draft[field.name] ?? {}) as Draft}
                problems={problems}
                onChange={change}
                at={path}
              />
            </fieldset>
          );
        }
        return (
          <Input
            key={path}
            field={field}
            value={draft[field.name] as string | boolean}
            problem={problems.find((entry) => entry.path === path)?.message}
            onChange={change}
          />
        );
      })}
    </>
  );
}

function Input({
  field,
  value,
  problem,
  onChange,
}: {
  field: Field;
  value: string | boolean;
  problem: string | undefined;
  onChange: (value: string | boolean) => void;
}) {
  const id = useId();
  const { control } = field;
  const common = {
    id,
    class: "input",
    value: String(value ?? ""),
    "aria-describedby": `${id}-hint`,
    "aria-invalid": Boolean(problem),
    required: field.required && control.kind !== "text",
    onInput: (event: { currentTarget: { value: string } }) => onChange(event.currentTarget.value),
  };
  if (control.kind === "boolean") {
    return (
      <div class="field">
        <label class="check" for={id}>
          <input
            id={id}
            type="checkbox"
            checked={value === true}
            aria-describedby={`${id}-hint`}
            onChange={(event) => onChange(event.currentTarget.checked)}
          />
          {field.label}
        </label>
        <Hint id={id} field={field} problem={problem} />
      </div>
    );
  }
  return (
    <div class="field">
      <label for={id}>
        {field.label}
        {field.required && <span class="muted"> · needed</span>}
      </label>
      {control.kind === "choice" ? (
        <select {...common}>
          <option value="">–</option>
          {control.options.map((option) => {
            const key = JSON.stringify(option);
            return (
              <option key={key} value={key}>
                {typeof option === "string" ? option : key}
              </option>
            );
          })}
        </select>
      ) : control.kind === "number" ? (
        <input
          {...common}
          type="number"
          step={control.integer ? 1 : "any"}
          min={control.min}
          max={control.max}
        />
      ) : control.kind === "list" ||
        control.kind === "json" ||
        (control.kind === "text" && control.long) ? (
        <textarea
          {...common}
          class={`input${control.kind === "text" ? "" : " mono"}`}
          rows={3}
          spellcheck={control.kind === "text"}
        />
      ) : (
        <input
          {...common}
          type={(control.kind === "text" && control.password ? "password" : "text") as "text"}
          autocomplete="off"
        />
      )}
      <Hint id={id} field={field} problem={problem} />
    </div>
  );
}

function Hint({ id, field, problem }: { id: string; field: Field; problem: string | undefined }) {
  const kind = { list: "One per line.", json: "As JSON." }[field.control.kind as "list"] ?? "";
  return (
    <span class={`hint${problem ? " wrong" : ""}`} id={`${id}-hint`}>
      {problem ? `This ${problem}.` : [field.description, kind].filter(Boolean).join(" ")}
    </span>
  );
}
