// Exports one trace with the OpenTelemetry JavaScript SDK over OTLP/HTTP JSON to the URL given as the only argument, and
// prints what it exported as one line of JSON.
import { SpanKind, SpanStatusCode, TraceFlags, context, trace } from '@opentelemetry/api';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { NodeTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-node';

const provider = new NodeTracerProvider({
  resource: resourceFromAttributes({ 'service.name': 'javascript-shop', 'service.instance.id': 7, 'shop.open': true }),
  spanProcessors: [new SimpleSpanProcessor(new OTLPTraceExporter({ url: `${process.argv[2]}/v1/traces` }))],
});
provider.register();
const tracer = provider.getTracer('shop', '1.2.3', { schemaUrl: 'https://opentelemetry.io/schemas/1.37.0' });

const linked = { traceId: '0af7651916cd43dd8448eb211c80319c', spanId: 'b7ad6b7169203331', traceFlags: TraceFlags.SAMPLED };
const attributes = {
  text: 'naïve 🦊 "quoted"\n\u0000',
  'text.empty': '',
  yes: true,
  no: false,
  'int.zero': 0,
  'int.negative': -42,
  'int.safe_max': Number.MAX_SAFE_INTEGER,
  double: 2.5,
  'double.tiny': 5e-324,
  'list.text': ['a', '', 'c'],
  'list.int': [1, 2, 3],
  'list.bool': [true, false],
};
const root = tracer.startSpan('checkout', { kind: SpanKind.SERVER, attributes, links: [{ context: linked, attributes: { why: 'retry' } }] });
const inside = trace.setSpan(context.active(), root);
const child = tracer.startSpan('charge card', { kind: SpanKind.CLIENT }, inside);
child.addEvent('attempt', { number: 1, took_s: 0.25 });
child.recordException(new Error('card declined'));
child.setStatus({ code: SpanStatusCode.ERROR, message: 'card declined' });
child.end();
root.end();
await provider.forceFlush(); // rejects, and so ends this program with 1, when an export failed
await provider.shutdown();

const nanos = ([seconds, nanoseconds]) => String(BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds));
const told = (span) => ({
  span_id: span.spanContext().spanId,
  start_time_unix_nano: nanos(span.startTime),
  end_time_unix_nano: nanos(span.endTime),
});
console.log(JSON.stringify({ trace_id: root.spanContext().traceId, attributes, linked, root: told(root), child: told(child) }));
