/** Programs of the matrix (`test/matrix/`) with several processes, moved there and back in both modes while they are used. */
import { php } from "../matrix/programs/php.ts";
import { pythonForking, pythonMultiprocessing } from "../matrix/programs/python.ts";
import { shell } from "../matrix/programs/shell.ts";
import { testProgram } from "../matrix/test-program.ts";

testProgram(php);
testProgram(pythonMultiprocessing);
testProgram(pythonForking);
testProgram(shell);
