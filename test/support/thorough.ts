/**
 * `HOLDFAST_CHAOS=1`: everything, in each phase and at each point. Without it tests take of what is alike in its own way (a store that is killed
 * or stands still, three replicas or two) what shows the behaviour: `npm test` has a time to be over in.
 */
export const isThorough = process.env.HOLDFAST_CHAOS === "1";
