// @ts-check
/** The page by itself, as `sparsitywatch show` serves it. */

import { render } from "./index.js";

render();
