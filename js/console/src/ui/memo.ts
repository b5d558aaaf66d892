import { Component, type ComponentType, type FunctionComponent, h } from "preact";

/** Draw a component again only when its properties have changed. */
export function memo<P extends object>(
  inner: FunctionComponent<P>,
  same: (a: Readonly<P>, b: Readonly<P>) => boolean = shallow,
): ComponentType<P> {
  return class Memo extends Component<P> {
    override shouldComponentUpdate(next: Readonly<P>): boolean {
      return !same(this.props as Readonly<P>, next);
    }
    override render() {
      return h(inner, this.props as P);
    }
  };
}

function shallow<P extends object>(a: Readonly<P>, b: Readonly<P>): boolean {
  const keys = new Set([...Object.keys(a), ...Object.keys(b)]);
  return [...keys].every((key) => Object.is(a[key as keyof P], b[key as keyof P]));
}
