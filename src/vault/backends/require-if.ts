/**
 * The part of a schema that requires a setting where a condition holds; `others` are what would do
 * instead, for the message.
 */
export function requireIf(
  condition: object,
  setting: string,
  others: readonly string[] = []
): object {
  const description = others.length === 0 ? undefined : `${others.join(' or ')} will do, too`
  const named = description === undefined ? {} : { properties: { [setting]: { description } } }
  // biome-ignore lint/suspicious/noThenProperty: a keyword of JSON Schema
  return { if: condition, then: { required: [setting], ...named } }
}
