/** The recipe that a node's widgets hold, as the server takes it: `recipe`, and under "custom" its values. */

const PREFIX = "recipe.";

/** values: a node's widget values by name; null where they hold no recipe. */
export function recipeOf(values) {
  if (values?.recipe === undefined) return null;
  const own = Object.entries(values).filter(([name]) => name.startsWith(PREFIX));
  return { recipe: values.recipe, ...Object.fromEntries(own.map(([name, value]) => [name.slice(PREFIX.length), value])) };
}
