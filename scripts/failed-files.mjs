// A reporter for node --test: the files that had a failure, a line each time.
export default async function* failedFiles(events) {
  for await (const { type, data } of events) if (type === "test:fail") yield `${data.file ?? data.name}\n`;
}
