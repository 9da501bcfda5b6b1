/** PostgreSQL of the matrix (`test/matrix/`), moved there and back in both modes while pgbench and psql use it. */
import { postgresql } from "../matrix/programs/postgresql.ts";
import { testProgram } from "../matrix/test-program.ts";

testProgram(postgresql, ["takeover", "forward"]);
