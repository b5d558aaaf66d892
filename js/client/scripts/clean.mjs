// Removes what an earlier build made, so that the package never holds a file without a source.
import { rmSync } from "node:fs";

rmSync(new URL("../dist/", import.meta.url), { recursive: true, force: true });
