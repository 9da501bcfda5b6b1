/** Programs of the matrix (`test/matrix/`) with several processes, moved there and back in one mode or the other while they are used. */
import { php } from "../matrix/programs/php.ts";
import { pythonForking, pythonMultiprocessing } from "../matrix/programs/python.ts";
import { shell } from "../matrix/programs/shell.ts";
import { testProgram } from "../matrix/test-program.ts";
import { modes } from "../support/thorough.ts";

testProgram(php, modes("forward"));
testProgram(pythonMultiprocessing, modes("takeover"));
testProgram(pythonForking, modes("forward"));
testProgram(shell, modes("takeover"));
